// Package ranges reads ranges of blobs, from whichever hosts of whichever repositories have them.
//
// # The data's way
//
//	Blob.ReadAt / Blob.Range ── stream ── a host that sends the range (package registry)
//	                              └─ spool: a file that the whole blob comes into
//
// A read is all or an error. Where a body ends early, stalls, or is a page that is not the blob,
// the stream goes on at another host from the byte where it ended, and of other images that have
// the blob (Blob.AlsoFrom). A Blob WithPatience waits for hosts that refuse: it is read for
// containers that run, for whom a registry that is being repaired, or credentials that are being
// renewed, are worth a wait.
//
// The bytes are not hashed here: a range has no digest of its own, so whoever knows what a range
// must contain verifies it, and says so if it is wrong (Blob.Suspect): then somebody else is asked.
//
// A host that answers a range with the whole blob is asked for no other: if no host honours ranges,
// the blob comes whole into a file (spool), once, and ranges of it are read there as they pass. Now
// and then the host is asked again whether it honours ranges by now.
//
// # Concurrency
//
// Blobs and Blob are safe for parallel use. A stream that Range returns has one reader. A spool is
// filled by a goroutine of its own, which Blobs.Close ends and waits for.
package ranges
