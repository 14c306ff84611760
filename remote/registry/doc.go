// Package registry sends requests to registries: to which host, with which token, over which
// redirect, and how often.
//
// # The data's way
//
//	Client ── hosts of a registry (hosts.toml: mirrors first, the registry itself last)
//	  └─ Repository.Rotation ── Pick: the host to ask now, or a pause
//	       └─ Repository.Send(Host, Call) ── session: token ── Target: redirect ── HTTP
//	            └─ Reply: a body that is watched
//
// What can pass (a reset connection, a body that stalls or trickles, 429, 5xx) is tried again, at
// the next host first and after a pause once every host has failed, until the caller's context
// ends; the error then names the last cause. A pause is cut short when a host answers somebody
// else, and after it the hosts are those that are configured by then. What cannot pass (404 or a
// refused token at every host) is returned at once as ErrNotFound or ErrUnauthorized, unless
// Rotation.Ends says that it is waited for. No error is kept.
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
// Client, Repository, Host, Target and Doubt are safe for parallel use. A Rotation and a Reply are
// one goroutine's. Where several callers need the same token one of them fetches it, and another
// takes over if that one's context ends. What Client.Go runs ends with the Client.
package registry
