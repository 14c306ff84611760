package fuse

import (
	"fmt"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// Opcodes of the FUSE protocol that the connection itself looks at; go-fuse
// knows all the others. From include/uapi/linux/fuse.h.
const (
	opForget      = 2
	opRead        = 15
	opGetXattr    = 22
	opListXattr   = 23
	opInit        = 26
	opReadDir     = 28
	opInterrupt   = 36
	opBatchForget = 42
	opReadDirPlus = 44

	opCount = 64 // above the highest opcode of Linux 6.18 (53)
)

// notifyResend in place of a reply's status asks the kernel to hand out anew what was read and not
// answered (FUSE_NOTIFY_RESEND, Linux 6.9). The requests' unique IDs differ from the former ones by
// their highest bit.
const notifyResend = -int32(gofuse.NOTIFY_RESEND)

// opNames are the requests that Stats counts by name.
var opNames = [opCount]string{
	1: "lookup", opForget: "forget", 3: "getattr", 5: "readlink", 14: "open", opRead: "read",
	17: "statfs",
	18: "release", opGetXattr: "getxattr", opListXattr: "listxattr", 25: "flush", opInit: "init",
	27:        "opendir",
	opReadDir: "readdir", 34: "access", opInterrupt: "interrupt", 38: "destroy",
	opBatchForget: "forget", opReadDirPlus: "readdirplus",
	46: "lseek", 52: "statx",
}

const (
	inHeaderSize  = int(unsafe.Sizeof(gofuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(gofuse.OutHeader{}))

	// requestSize is the size of a request buffer. The kernel refuses to hand
	// out requests to a buffer smaller than 8192 bytes (FUSE_MIN_READ_BUFFER)
	// or than its largest write request: 80 bytes and maxWrite.
	requestSize = 8192

	// maxWrite is what we tell the kernel to write at most in one request:
	// the smallest that it accepts, since all is read-only. It keeps request
	// buffers at 8 KiB instead of 1 MiB; reads are not bound by it.
	maxWrite = 4096

	// replySize holds every reply other than those to read, readdir and
	// xattr requests: the header, and the largest fixed part (a few hundred
	// bytes) or a link target (at most 4096).
	replySize = 8192
)

// header returns the fixed header of a request; req stays referenced.
func header(req []byte) (*gofuse.InHeader, error) {
	if len(req) < inHeaderSize {
		return nil, fmt.Errorf("fuse request of %d bytes", len(req))
	}
	return (*gofuse.InHeader)(unsafe.Pointer(&req[0])), nil
}

// body returns a request as its opcode's structure; ok is false where the
// request is too short for it.
func body[T any](req []byte) (t *T, ok bool) {
	if len(req) < int(unsafe.Sizeof(*t)) {
		return nil, false
	}
	return (*T)(unsafe.Pointer(&req[0])), true
}

// payload returns how many bytes of unstructured data the reply to a request
// may take.
func payload(req []byte, opcode uint32) int {
	switch opcode {
	case opReadDir, opReadDirPlus:
		if in, ok := body[gofuse.ReadIn](req); ok {
			return int(in.Size)
		}
	case opGetXattr, opListXattr:
		if in, ok := body[gofuse.GetXAttrIn](req); ok {
			return int(in.Size)
		}
	}
	return 0
}

// patchInit lowers max_write in the reply to INIT: see maxWrite. go-fuse knows
// one figure for max_write and for the pages of a request, we want 1 MiB of
// the latter.
func patchInit(reply []byte) error {
	if len(reply) < outHeaderSize+int(unsafe.Sizeof(gofuse.InitOut{})) {
		return fmt.Errorf("reply to INIT has %d bytes", len(reply))
	}
	h := (*gofuse.OutHeader)(unsafe.Pointer(&reply[0]))
	if h.Status != 0 {
		return fmt.Errorf("INIT: %w", errnoError(-h.Status))
	}
	(*gofuse.InitOut)(unsafe.Pointer(&reply[outHeaderSize])).MaxWrite = maxWrite
	return nil
}

// asBytes returns the memory of a wire structure.
func asBytes[T any](t *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(t)), unsafe.Sizeof(*t))
}

// replyStatus returns the status in a reply's header: 0 or a negative errno.
func replyStatus(reply []byte) int32 {
	h, ok := body[gofuse.OutHeader](reply)
	if !ok {
		return 0
	}
	return h.Status
}
