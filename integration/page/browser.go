//go:build browser

package page

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
)

// Browser is a headless Chromium behind its driver, which speaks
// https://www.w3.org/TR/webdriver2/.
type Browser struct {
	driver *exec.Cmd
	at     string // of the session
}

// Open starts a browser. Pair it with Close.
func Open(ctx context.Context) (*Browser, error) {
	b := &Browser{driver: exec.CommandContext(ctx, "chromedriver", "--port=0")}
	out, err := b.driver.StdoutPipe()
	if err == nil {
		err = b.driver.Start()
	}
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for b.at == "" && lines.Scan() {
		if _, port, ok := strings.Cut(lines.Text(), "started successfully on port "); ok {
			b.at = "http://127.0.0.1:" + strings.TrimSuffix(port, ".") + "/session"
		}
	}
	var session struct {
		ID string `json:"sessionId"`
	}
	err = b.ask(ctx, "", map[string]any{"capabilities": map[string]any{
		"alwaysMatch": map[string]any{
			"goog:loggingPrefs": map[string]string{"browser": "ALL"},
			"goog:chromeOptions": map[string]any{"args": []string{
				"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
			}},
		},
	}}, &session)
	if err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	b.at += "/" + session.ID
	return b, nil
}

// Close ends the browser.
func (b *Browser) Close(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, b.at, nil)
	if err != nil {
		return err
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
	}
	err = b.driver.Process.Kill()
	_ = b.driver.Wait() // it was killed
	return err
}

// ask sends a command and decodes its value.
func (b *Browser) ask(ctx context.Context, path string, body, value any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.at+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, answer.Value)
	}
	if value == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, value)
}

// Go loads a page.
func (b *Browser) Go(ctx context.Context, url string) error {
	return b.ask(ctx, "/url", map[string]string{"url": url}, nil)
}

// Run runs a script, which returns a value.
func (b *Browser) Run(ctx context.Context, script string, value any) error {
	return b.ask(ctx, "/execute/sync", map[string]any{"script": script, "args": []any{}}, value)
}

// Command sends a command of the DevTools protocol.
func (b *Browser) Command(ctx context.Context, name string, params any) error {
	return b.ask(ctx, "/goog/cdp/execute", map[string]any{"cmd": name, "params": params}, nil)
}

// Press presses a key and lets it go.
func (b *Browser) Press(ctx context.Context, key string) error {
	return b.ask(ctx, "/actions", map[string]any{"actions": []any{map[string]any{
		"type": "key", "id": "keyboard", "actions": []any{
			map[string]string{"type": "keyDown", "value": key},
			map[string]string{"type": "keyUp", "value": key},
		}}}}, nil)
}

// Log returns what the browser has logged since the last call.
func (b *Browser) Log(ctx context.Context) (lines []string, err error) {
	var entries []struct{ Level, Message string }
	err = b.ask(ctx, "/se/log", map[string]string{"type": "browser"}, &entries)
	for _, e := range entries {
		lines = append(lines, e.Level+" "+e.Message)
	}
	return lines, err
}

// Picture returns a picture of what is to be seen, a PNG.
func (b *Browser) Picture(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.at+"/screenshot", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct{ Value string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(answer.Value)
}
