package source

// buffers are buffers that were used. Their sizes are those that roundUp returns.
type buffers struct {
	bytes  int64
	bySize map[int64][][]byte
}

// roundUp makes sizes few, so that a buffer fits many pieces.
func roundUp(size int64) int64 {
	const step = 128 << 10
	return (size + step - 1) / step * step
}

// get returns a buffer of size bytes, one of them or a new one. If they have more than room bytes
// by then, they are let go.
func (s *buffers) get(size, room int64) []byte {
	full := roundUp(size)
	if list := s.bySize[full]; len(list) > 0 {
		b := list[len(list)-1]
		s.bySize[full] = list[:len(list)-1]
		s.bytes -= full
		return b[:size]
	}
	if s.bytes+full > room {
		*s = buffers{}
	}
	return make([]byte, size, full)
}

func (s *buffers) put(b []byte) {
	if s.bySize == nil {
		s.bySize = map[int64][][]byte{}
	}
	n := int64(cap(b))
	s.bySize[n] = append(s.bySize[n], b)
	s.bytes += n
}
