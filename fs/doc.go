// Package fs is the table of a node's open layers, their mount points, and what of them is handed
// over to the next process: it mounts a layer, serves it, replaces a mount by the kernel's own when
// the layer is local, and takes it away.
//
// # The data's way
//
// Mount finds a layer in three places, in this order: in the table, where it is mounted; in the
// store, where an earlier run left it; at the registry, by a pull (package pull). Whether it may be
// shown to the image that asks is package proof's answer; what it may take on disk is package
// cache's.
//
//	Mount ──▶ obtain ─┬─ in the store ─────────▶ openLayer ── proof ──▶ m/NAME, dev/KEY
//	                  └─ Pulls.Bring ──▶ store ───┘
//
// A read of a mount comes to a device. Fill waits in layer.Layer.Fill until what is missing has
// come. ReadAt notes the read for the profile, begins the fill of the image's layers, and asks for
// the bytes.
//
// # A layer's life
//
// An open layer is at one stage. The method stage derives it from what is on disk, so that the next
// opening finds the layer where this one leaves it; closed alone is kept in memory.
//
//	lazy       some spans are missing
//	whole      all spans are here; the index is the word of the repositories that vouch for it
//	disproved  all spans are here, and they are not the diffID's
//	proved     all spans are here, and the tree is their tar's
//	local      as proved, recorded as verified and sealed: the kernel may read the layer alone
//	closed     the table has let go of the layer
//
// One goroutine a layer, tend, advances it; Prove takes the same steps for an image that waits.
// A layer that was opened less than completeAfter ago waits for that first. advance records the
// layer as complete, waits until no container needs the cores, has its tar hashed
// (proof.Proof.Check), and, if the cache has room, seals it and mounts it local. A layer that is
// proved, and has no room, is not hashed again. If the bytes are wrong, mend (cache.Cache.Verify)
// gives wrong spans up.
//
//	at                 event                        raised by          then
//	-                  opened                       stored             what the disk says
//	lazy               last span came (lastCame)    fs/store           whole; if its standing is
//	                                                                   known, disproved or proved
//	whole              checked: all is right        tend, Prove        proved
//	whole              checked: not the diffID's    tend, Prove        disproved
//	proved             the cache has room for it    tend, Prove        local
//	whole, proved      disk full, or its fault      tend               the same, tried again
//	whole … proved     span lost: evicted, found    fs/cache, fs/store lazy
//	                   wrong, or not synced
//	whole … local      emptied, not in use          fs/cache: MakeLazy lazy
//	local              span found wrong             fs/cache: Verify   local: put right in place
//	any                index found damaged          fs/cache: Verify   the same; the next opening
//	                                                                   removes the layer
//	any                unmounted, or Close          close              closed
//
// The cache has room for a layer when all local ones together take at most three quarters of the
// quota (cache.Cache.Fits). A layer that it has no room for stays proved until it comes whole
// again, or is opened again. A span that is lost before tend has come to the layer is fetched at
// once, if the layer's fill has begun, any other when it is read. Mount points of a layer that
// becomes local are replaced, where the kernel can do that.
//
// # Over the end of the process
//
// A lazy mount needs a process that answers. With a Keeper, the descriptor of its FUSE connection
// outlives this one, beside a description of it; readers wait meanwhile. Open of the next process
// serves all of them at once, from the store alone. Readers of one whose layer does not open get
// EIO when they have waited for as long as a read may.
//
//	FUSE mount ── descriptor, heldState ──▶ Keeper ── Options.Held ──▶ Open: adopt ──▶ openLayer
//
// # Concurrency
//
// All methods may run in parallel. No lock is held over the network. What runs in the background
// (pulls, checks of whole layers) belongs to the Table and has ended when Close returns.
package fs
