package admin

import (
	"context"
	"strconv"
	"strings"
)

// Metrics returns micad's metrics that have no labels, by name.
func (c *Client) Metrics(ctx context.Context) (map[string]float64, error) {
	b, err := c.Text(ctx, PathMetrics)
	if err != nil {
		return nil, err
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil { // comments have no number there
			all[name] = v
		}
	}
	return all, nil
}
