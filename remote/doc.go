// Package remote reads images from registries: blobs by range, manifests, referrers; and pushes
// indexes to them.
//
// # The data's way
//
//	Client ── hosts of a registry (hosts.toml: mirrors first, the registry itself last)
//	  └─ Image ── one per reference; layers share everything below
//	       └─ repository ── tokens per (host, scope), redirect targets per blob
//	            └─ Blob.ReadAt / Blob.Range ── rotation over the hosts ── exchange: token, redirect ── HTTP
//	                 └─ of all images that have the blob (Blob.Or)
//
// A read is all or an error. What can pass (a reset connection, a body that ends early, stalls or
// trickles, 429, 5xx, a page that is not the blob) is tried again, at the next host first and after
// a pause once every host has failed, from the byte where the last body ended, until the caller's
// context ends; the error then names the last cause. A pause is cut short when a host answers
// somebody else, and after it the hosts are those that are configured by then. What cannot pass
// (404 or a refused token at every host) is returned at once as ErrNotFound or ErrUnauthorized,
// except by a Blob WithPatience: it is read for containers that run, for whom a registry that is
// being repaired, or credentials that are being renewed, are worth a wait. No error is kept.
//
// What refers to an image (Image.Referrers) is worth some seconds and no more: a host that takes
// longer is doubted for an hour. That it failed, or asked to be left alone, is not held against it
// when blobs are read; neither is that a Blob failed which is Aside.
//
// Blob bytes are not hashed here: a range has no digest of its own, so whoever knows what a range
// must contain verifies it, and says so if it is wrong (Blob.Suspect): then somebody else is asked.
// Manifests and whole small blobs are.
//
// A host that answers a range with the whole blob is asked for that once: the blob comes into a
// file, and ranges of it are read there as they pass (spool), unless another host honours ranges.
//
// Of several credentials all are tried that fit; a refusal stands for a second and up to ten, and
// not where there are new ones.
//
// Round trips are the cost that matters: there is no ping of /v2/, the first request of a
// repository meets the challenge while its siblings wait, one token serves all layers, and a blob's
// redirect target is asked for once and kept until it expires or is refused. Credentials never
// follow a redirect to another host.
//
// # Concurrency
//
// Client, Image and Blob are safe for parallel use. A stream that Range returns has one reader.
// Work runs in the caller's goroutine, and where several callers need the same token one of them
// fetches it, and another takes over if that one's context ends. Connections made in advance
// (Image.Connect) are the Client's, and end with it.
package remote
