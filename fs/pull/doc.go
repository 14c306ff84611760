// Package pull brings an image's layers into the store: the index of each, or the whole of it.
//
// # The data's way
//
// A pull is what all layers of one image share: one look-up of the index, one client. It starts on
// every layer of the image at once, so that later calls find their layers there.
//
//	Announce, Begin ─▶ Pull ─┬─ look-up: referrers ─▶ trees, of all layers ─┐
//	                         │     ├─▶ copies.Push: what a start reads      ├─▶ install ──┐
//	                         │     └─▶ Host.Replay: a profile               │             ▼
//	                         └─ job, of each layer ◀────────────────────────┘         fs/store
//	                               └─ no index: manifest ─▶ download and scan ──────────┘
//
// A layer that is in the store is shown by Host.Show, unless what it shows depends on the layers
// below. Promise tells what a layer is going to be as soon as the registry has told of the index.
//
// # The stages of a pull
//
//	stage      begins when                           moved by          known
//	announced  containerd has the manifest           Announce          repository, layers
//	asked      containerd asks for a layer           Begin, Heed       the image's name, its layers
//	over       nobody has waited for pullIdle, a     the idle timer,
//	           job has failed, or a layer was lost   job, Lost
//
// A pull that is only announced looks for the index and installs layers; it downloads, replays and
// mounts nothing. It may be asked from the beginning. One that is over is not joined any more: the
// next who asks for the image begins anew. Jobs that it has begun go on to their end.
//
// The look-up goes on beside these stages, once:
//
//	looking    from the first job on                 job            the repository
//	told       the referrers are here                Pull.find      diffID and size of layers
//	resolved   the trees are here, or will not be    Pull.find      the index; or: there is none
//
// # Concurrency
//
// All methods may run in parallel. Pulls.mu guards what pulls share, and is never held over disk,
// network, or a call of the Host. What runs in the background belongs to the Host.
package pull
