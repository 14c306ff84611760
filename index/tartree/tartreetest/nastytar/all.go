package nastytar

import (
	"slices"
	"strings"
)

// Tar is a tar with a name.
type Tar struct {
	Name string
	Data []byte

	// Refused says that containerd does not unpack it.
	Refused bool
	// Extra says that Mica reads it, though containerd refuses it.
	Extra bool
}

// All returns all tars, by name.
func All() []Tar {
	all := slices.Concat(headers(), attributes(), acls(), links(), paths(), replaced(), whiteouts(),
		sparse(), ends())
	slices.SortFunc(all, func(a, b Tar) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Accepted returns the tars that containerd unpacks.
func Accepted() []Tar {
	return slices.DeleteFunc(All(), func(t Tar) bool { return t.Refused })
}

func good(name string, entries ...Entry) Tar { return Tar{Name: name, Data: Of(entries...)} }

func refused(name string, entries ...Entry) Tar {
	return Tar{Name: name, Data: Of(entries...), Refused: true}
}

func extra(name string, entries ...Entry) Tar {
	return Tar{Name: name, Data: Of(entries...), Refused: true, Extra: true}
}
