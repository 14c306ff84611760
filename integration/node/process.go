package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Process is a daemon in a process group of its own. It is killed when this
// process ends, however that happens.
type Process struct {
	Name string
	Log  string // path of the file with stdout and stderr, appended to

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
	err  error         // of Wait; valid after done
}

var errEnded = errors.New("it ended by itself")

// StartProcess starts argv with the environment env (nil: this process's own)
// and waits until ready returns nil. ready is called again and again, until
// ctx ends or the process does.
func StartProcess(ctx context.Context, name, logPath string, env, argv []string, ready func(context.Context) error) (*Process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{Name: name, Log: logPath, cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() { // ends with the process, which Stop waits for
		// Pdeathsig is sent when this thread ends: it must be nobody else's to end.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := p.await(ctx, ready); err != nil {
		p.Kill()
		return nil, fmt.Errorf("start %s: %w; its log ends:\n%s", name, err, p.Tail(2000))
	}
	return p, nil
}

func (p *Process) await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return errors.Join(errEnded, p.err)
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process, not to its children.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop asks the process to end, and waits for it: what it has written has to become durable, on a
// disk that may be busy. After 45 seconds it kills the process, which is an error. A process that
// ended before, by itself, is one too.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s: %w; its log ends:\n%s", p.Name, errors.Join(errEnded, p.err), p.Tail(2000))
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(45 * time.Second):
	}
	said := p.Tail(5_000)
	_ = p.cmd.Process.Signal(syscall.SIGQUIT) // a Go program writes down where it hangs
	select {
	case <-p.done:
	case <-time.After(2 * time.Second):
	}
	p.Kill()
	_, stacks, _ := strings.Cut(p.Tail(64<<20), "SIGQUIT") // the first one is what main waits for
	return fmt.Errorf("%s ignored SIGTERM; its log ends:\n%s\n%s", p.Name, said,
		stacks[:min(len(stacks), 60_000)])
}

// Kill ends the process and its group at once and waits for it.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Tail returns at most the last n bytes of the log, from the start of a line.
func (p *Process) Tail(n int) string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	if len(b) > n {
		b = b[len(b)-n:]
		if i := strings.IndexByte(string(b), '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return string(b)
}
