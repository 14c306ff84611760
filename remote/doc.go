// Package remote reads images from registries: manifests, what refers to them, and blobs by range;
// and pushes indexes to them.
//
// # The data's way
//
//	Client.Image ── a reference
//	  ├─ Resolve, Manifest, FetchBlob: documents, whole, compared with their digests
//	  ├─ Referrers: what refers to the image ── a listing, of several hosts
//	  ├─ PushBlob, PushReferrer
//	  └─ Blob ── package ranges: a range as it comes, at whichever host has it
//	       └─ all of them ── package registry: hosts, tokens, redirects, HTTP
//
// A document comes from the first host that has it. What can pass is tried again, as for a range of
// a blob, until the caller's context ends.
//
// What refers to an image (Image.Referrers) is worth some seconds and no more: a host that takes
// longer is doubted for an hour. That it failed, or asked to be left alone, is not held against it
// when blobs are read; neither is that a Blob failed which is Aside.
//
// # Concurrency
//
// Client and Image are safe for parallel use. Work runs in the caller's goroutine, and in such as
// end before the call does. Connections made in advance (Image.Connect), and what a host that is
// doubted is asked once more, are the Client's, and end with it.
package remote
