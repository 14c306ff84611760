package index

// AppendSpan is Span.append, for tests that forge a span table.
var AppendSpan = (*Span).append
