// Package fetch is the node's scheduler of what nobody waits for yet: profiles are replayed, and
// layers filled.
//
// # The data's way
//
// Demand does not pass here: a read asks its layer, which fetches at once. The scheduler asks the
// same layers for more, so that later reads find it there:
//
//	profile ──▶ Replay ──▶ runs in order of first access ─┐
//	                                                      ├─▶ Layer.Fetch, so many at a time
//	layers ───▶ Fill ────▶ what is missing, front to back ─┤
//	readers ──▶ Near ────▶ what follows where they waited ─┘
//
// Replays go before fills, and of these those near readers before the rest. What they have in
// common with demand (bytes in flight, decoders, who goes first) is decided below, by the
// layers' line.Budget: fills have under way what the line takes without a queue, and no more, and
// leave the cores to containers that start.
//
// # Concurrency
//
// One goroutine, that of Run, decides; every request has one of its own. Run waits for them all,
// Forget for those of one layer. The other methods return at once and may be called in parallel,
// before Run as well.
package fetch
