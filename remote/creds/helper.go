package creds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

// maxHelperOutput is how much a helper may say, in bytes.
const maxHelperOutput = 1 << 20

// ask runs docker-credential-NAME for a host, bounded in time: a helper may want to talk to a key
// store, a cloud, or a person.
func ask(ctx context.Context, name, host string, timeout time.Duration) (Credential, error) {
	if strings.ContainsAny(name, "/\\") {
		return Credential{}, fmt.Errorf("credential helper %q: a name, not a path, is wanted", name)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	server := canonical(host)
	if server == "docker.io" {
		server = hubKey
	}
	c, err := client.Get(func(args ...string) client.Program {
		cmd := exec.CommandContext(ctx, "docker-credential-"+name, args...)
		cmd.WaitDelay = time.Second // a grandchild may hold the pipe
		return &program{cmd: cmd}
	}, server)
	switch {
	case ctx.Err() != nil:
		return Credential{}, fmt.Errorf("credential helper %s: %w", name, context.Cause(ctx))
	case err != nil && credentials.IsErrCredentialsNotFound(err):
		return Credential{}, nil
	case err != nil:
		return Credential{}, fmt.Errorf("credential helper %s: %w", name, err)
	case c.Username == "<token>": // Docker's mark for an identity token
		return Credential{"", c.Secret}, nil
	}
	return Credential{c.Username, c.Secret}, nil
}

// program runs a helper under a context, which the helpers' own client does not.
type program struct{ cmd *exec.Cmd }

// Input implements client.Program.
func (p *program) Input(in io.Reader) { p.cmd.Stdin = in }

// Output implements client.Program.
func (p *program) Output() ([]byte, error) {
	var out capped
	p.cmd.Stdout = &out
	err := p.cmd.Run()
	if err != nil { // then the output is a message, which the client quotes
		out.b = out.b[:min(len(out.b), 500)]
	}
	return out.b, err
}

// capped keeps the first maxHelperOutput bytes written to it and refuses more.
type capped struct{ b []byte }

func (c *capped) Write(p []byte) (int, error) {
	if len(c.b)+len(p) > maxHelperOutput {
		return 0, errors.New("helper says too much")
	}
	c.b = append(c.b, p...)
	return len(p), nil
}

var _ client.Program = (*program)(nil)
