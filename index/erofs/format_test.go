package erofs_test

// Places and sizes in an image, in bytes from the start of the file on.
const (
	superOffset   = 1024
	metaOffset    = superOffset + 512 // inode nid lies at metaOffset + nid*nidSize
	nidSize       = 32
	rootNid       = 1
	nullBlock     = 1<<32 - 1
	layoutInline  = 2
	layoutChunked = 4
)
