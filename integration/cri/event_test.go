package cri

import (
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// api is Kubernetes' API, of which there is no more than events. It takes what the type of an event
// has, and returns a kubeconfig, and the events that come, by the container that they name.
func api(t *testing.T, containers ...string) (
	kubeconfig string, events map[string]chan corev1.Event,
) {
	t.Helper()
	events = map[string]chan corev1.Event{}
	for _, name := range containers {
		events[name] = make(chan corev1.Event, 10)
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e corev1.Event
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		err := d.Decode(&e)
		if err != nil || r.Method != http.MethodPost ||
			r.URL.Path != "/api/v1/namespaces/"+e.Namespace+"/events" ||
			r.Header.Get("Authorization") != "Bearer token" {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
			http.Error(w, "not an event", http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
		for name, came := range events {
			if strings.HasPrefix(e.Message, "container "+name+" ") {
				came <- e
			}
		}
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	kubeconfig = filepath.Join(dir, "kubeconfig")
	authority := filepath.Join(dir, "ca.crt")
	for path, content := range map[string]string{
		authority: string(ca),
		kubeconfig: fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: node
contexts: [{name: node, context: {cluster: test, user: node}}]
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: node, user: {token: token}}]
`, server.URL, authority),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return kubeconfig, events
}

// TestEvent: Kubernetes is told of a pod's container that waited for its image, and why; and of
// none that did not.
func TestEvent(t *testing.T) {
	ctx := fixture.Context(t)
	r := fixture.Referrers(t)
	names := []string{"indexed", "plain", "private"}
	kubeconfig, events := api(t, names...)
	_, c := Start(t, r, node.Options{CRI: &node.CRI{},
		Micad: fmt.Sprintf("[kubernetes]\nkubeconfig = %q", kubeconfig)})
	probe, err := os.ReadFile(fixture.Probe(t))
	if err != nil {
		t.Fatal(err)
	}
	pod := StartPod(t, c, "pod")
	for _, name := range names {
		noise := make([]byte, 2<<20)
		if _, err := rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(noise); err != nil {
			t.Fatal(err)
		}
		tar, err := images.Tar(images.File("probe", 0o755, probe), images.File("noise", 0o644, noise))
		if err != nil {
			t.Fatal(err)
		}
		img, err := images.FromTars([]string{"/probe", "pause"}, tar)
		if err != nil {
			t.Fatal(err)
		}
		ref := fixture.Push(t, r, name, img)
		request := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}
		switch name {
		case "indexed":
			fixture.Index(t, r, name)
		case "private": // the pod has a secret, and micad none
			r.RequireLogin("user", "secret")
			request.Auth = &runtimeapi.AuthConfig{Username: "user", Password: "secret"}
		}
		if _, err := c.Images.PullImage(ctx, request); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Run(ctx, pod, ref, name); err != nil {
			t.Fatal(err)
		}
	}
	for name, why := range map[string][]string{
		"plain": {"micad downloaded 1 of its layers", // announced: the port is known by "indexed"
			"no index of it was found (mica index create --push " + r.Host() + "/plain:test makes one)"},
		"private": {"containerd pulled layer", "credentials"},
	} {
		var e corev1.Event
		select {
		case e = <-events[name]:
		case <-time.After(20 * time.Second):
			t.Fatalf("no event of %s has come", name)
		}
		want := corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: "default",
			Name: "pod", UID: "pod"}
		if e.InvolvedObject != want || e.Reason != "NotLazy" || e.Type != corev1.EventTypeNormal ||
			e.Count != 1 || e.Source.Component != "micad" || e.GenerateName == "" ||
			time.Since(e.LastTimestamp.Time) > time.Minute {
			t.Errorf("event %+v", e)
		}
		for _, want := range append(why, "container "+name+" waited for image "+r.Host()+"/"+name) {
			if !strings.Contains(e.Message, want) {
				t.Errorf("it says %q, not %q", e.Message, want)
			}
		}
	}
	for name, more := range events {
		if n := len(more); n > 0 {
			t.Errorf("%d more events of %s have come", n, name)
		}
	}
}
