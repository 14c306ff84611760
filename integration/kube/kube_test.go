//go:build kube

package kube

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mica-snapshotter/mica/integration/cri"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

func TestMain(m *testing.M) { fixture.Main(m) }

// large is how many bytes the large file of an image has that dataImage makes.
const large = 16 << 20

const (
	pods    = "/api/v1/namespaces/default/pods"
	secrets = "/api/v1/namespaces/default/secrets"
)

// TestKubernetes: a kubelet's pods are lazy, also by their own pull secrets, and as volumes. The
// cluster is told which were not. What no pod uses goes from the disk when the kubelet says so.
func TestKubernetes(t *testing.T) {
	c := newCluster(t)
	kubeconfig := c.kubeconfig("kubelet", "system:node:"+nodeName, "system:nodes")
	r, debian, size := fixture.ServedDebian(t, true)
	n, runtime := cri.Start(t, r, node.Options{CRI: &node.CRI{ByMicad: true}, Keep: true,
		Micad: fmt.Sprintf("[kubernetes]\nkubeconfig = %q\n", kubeconfig)})
	c.kubelet(of(n), kubeconfig)
	began := time.Now()
	eventually(t, time.Minute, func() error {
		return c.get("/api/v1/namespaces/default/serviceaccounts/default", new(corev1.ServiceAccount))
	})

	t.Run("lazy", func(t *testing.T) {
		r.ResetTraffic()
		c.run(t, "lazy", corev1.PodSpec{Containers: []corev1.Container{{
			Name: "app", Image: debian, Command: []string{"cat", "/etc/hostname", "/etc/debian_version"},
		}}})
		if log := c.ended(t, "lazy"); !strings.HasPrefix(log, "lazy\n") || len(log) < 8 {
			t.Errorf("it printed %q", log)
		}
		if got := r.Traffic().Down; got > size/10 {
			t.Errorf("%d bytes were downloaded of %d", got, size)
		}
	})
	t.Run("volume", func(t *testing.T) {
		ref, digest := dataImage(t, r, "model", true)
		r.ResetTraffic()
		c.run(t, "volume", corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "app", Image: debian, Command: []string{"sh", "-c",
					"cat /model/name; until [ -f /tmp/go ]; do sleep 0.2; done; sha256sum </model/large"},
				VolumeMounts: []corev1.VolumeMount{{Name: "model", MountPath: "/model", SubPath: "data"}},
			}},
			Volumes: []corev1.Volume{{Name: "model", VolumeSource: corev1.VolumeSource{
				Image: &corev1.ImageVolumeSource{Reference: ref},
			}}},
		})
		id := c.running(t, "volume")
		if got := r.Traffic().Down; got > large/4 {
			t.Errorf("%d bytes were downloaded of %d", got, large)
		}
		if _, err := runtime.Exec(t.Context(), id, "touch", "/tmp/go"); err != nil {
			t.Fatal(err)
		}
		if log, want := c.ended(t, "volume"), "model\n"+digest+"  -\n"; log != want {
			t.Errorf("it printed %q, not %q", log, want)
		}
	})
	t.Run("not lazy", func(t *testing.T) {
		ref, _ := dataImage(t, r, "plain", false)
		c.run(t, "plain", corev1.PodSpec{Containers: []corev1.Container{{
			Name: "app", Image: ref, Command: []string{"/probe", "echo", "plain"},
		}}})
		c.ended(t, "plain")
		var of []string
		eventually(t, 20*time.Second, func() error {
			var list corev1.EventList
			if err := c.get("/api/v1/events?fieldSelector=reason=NotLazy", &list); err != nil {
				return err
			}
			of = nil
			for _, e := range list.Items {
				of = append(of, e.InvolvedObject.Name+": "+e.Message)
			}
			if len(of) == 0 {
				return fmt.Errorf("there is none")
			}
			return nil
		})
		if len(of) != 1 || !strings.HasPrefix(of[0], "plain: container app waited for image "+ref) ||
			!strings.Contains(of[0], "no index of it was found") {
			t.Errorf("events: %q", of)
		}
	})
	t.Run("secret", func(t *testing.T) {
		ref, digest := dataImage(t, r, "private", true)
		r.RequireLogin("user", "secret")
		login := base64.StdEncoding.EncodeToString([]byte("user:secret"))
		c.create(t, secrets, corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "login"}, Type: corev1.SecretTypeDockerConfigJson,
			StringData: map[string]string{corev1.DockerConfigJsonKey: fmt.Sprintf(
				`{"auths": {%q: {"auth": %q}}}`, r.Host(), login)},
		})
		r.ResetTraffic()
		c.run(t, "secret", corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "app", Image: ref, Command: []string{"/probe", "pause"},
			}},
			ImagePullSecrets: []corev1.LocalObjectReference{{Name: "login"}},
		})
		id := c.running(t, "secret")
		if got := r.Traffic().Down; got > large/2 {
			t.Errorf("%d bytes were downloaded of %d", got, large)
		}
		if err := c.do(http.MethodDelete, c.url+secrets+"/login", nil, nil); err != nil {
			t.Fatal(err)
		}
		old, err := n.SignalMicad(syscall.SIGKILL)
		if err == nil {
			err = n.AwaitMicad(t.Context(), old, true)
		}
		if err != nil {
			t.Fatal(err)
		}
		out, err := runtime.Exec(t.Context(), id, "/probe", "show", "/data/large")
		if err != nil || !strings.Contains(out, digest) {
			t.Errorf("read after the secret is gone: %q, %v", out, err)
		}
	})
	t.Run("usage", func(t *testing.T) {
		var stats struct {
			Node struct {
				Runtime struct {
					ImageFs *struct{ UsedBytes, CapacityBytes uint64 }
				}
			}
		}
		eventually(t, 30*time.Second, func() error {
			if err := c.getFrom(c.kubeletURL+"/stats/summary", &stats); err != nil {
				return err
			}
			fs := stats.Node.Runtime.ImageFs
			if fs == nil || fs.CapacityBytes == 0 || fs.UsedBytes < large {
				return fmt.Errorf("the kubelet knows %+v of the images' file system", fs)
			}
			return nil
		})
	})
	t.Run("collection", func(t *testing.T) {
		for _, name := range []string{"lazy", "volume", "plain", "secret"} {
			c.remove(t, name)
		}
		// The kubelet looks every five minutes, from its start on.
		eventually(t, time.Until(began.Add(6*time.Minute)), func() error {
			list, err := runtime.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
			if n := len(list.GetImages()); err == nil && n > 1 { // that of the pods' sandboxes
				err = fmt.Errorf("the node has %d images", n)
			}
			return err
		})
		fixture.Freed(t, n, 1, 16<<20)
	})
}

// dataImage pushes an image with a large file, and returns its reference and that file's sha256.
func dataImage(t *testing.T, r *registry.Registry, name string, index bool) (ref, digest string) {
	t.Helper()
	noise := make([]byte, large)
	if _, err := rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(noise); err != nil {
		t.Fatal(err)
	}
	probe, err := os.ReadFile(fixture.Probe(t))
	if err != nil {
		t.Fatal(err)
	}
	tar, err := images.Tar(images.File("probe", 0o755, probe), images.Dir("data"),
		images.File("data/large", 0o644, noise), images.File("data/name", 0o644, []byte(name+"\n")))
	if err != nil {
		t.Fatal(err)
	}
	img, err := images.FromTars(nil, tar)
	if err != nil {
		t.Fatal(err)
	}
	ref = fixture.Push(t, r, name, img)
	if index {
		fixture.Index(t, r, name)
	}
	return ref, fmt.Sprintf("%x", sha256.Sum256(noise))
}

// run makes a pod whose containers are not started again.
func (c *cluster) run(t *testing.T, name string, spec corev1.PodSpec) {
	t.Helper()
	spec.RestartPolicy = corev1.RestartPolicyNever
	c.create(t, pods, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
}

// ended waits for the end of a pod, and returns what it has printed.
func (c *cluster) ended(t *testing.T, name string) (log string) {
	t.Helper()
	c.await(t, name, corev1.PodSucceeded)
	if err := c.get(pods+"/"+name+"/log", &log); err != nil {
		t.Fatal(err)
	}
	return log
}

// running waits for a pod's container, and returns its ID.
func (c *cluster) running(t *testing.T, name string) (container string) {
	t.Helper()
	pod := c.await(t, name, corev1.PodRunning)
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	return id
}

func (c *cluster) await(t *testing.T, name string, phase corev1.PodPhase) (pod corev1.Pod) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		if err := c.get(pods+"/"+name, &pod); err != nil {
			return err
		}
		if pod.Status.Phase != phase {
			return fmt.Errorf("it is %s: %+v", pod.Status.Phase, pod.Status.ContainerStatuses)
		}
		return nil
	})
	return pod
}

// remove removes a pod and waits for its end.
func (c *cluster) remove(t *testing.T, name string) {
	t.Helper()
	if err := c.do(http.MethodDelete, c.url+pods+"/"+name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64),
	}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		if err := c.get(pods+"/"+name, new(corev1.Pod)); err == nil {
			return fmt.Errorf("it is there")
		}
		return nil
	})
}

// eventually waits until try returns nil, or ends the test.
func eventually(t *testing.T, limit time.Duration, try func() error) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v: %v", limit, err)
		}
	}
}
