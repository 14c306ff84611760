//go:build kube

// Package kube tries Mica with a Kubernetes cluster: etcd, the API server, its controllers, the
// scheduler, and a kubelet on a node of package node, or on this machine. make kube builds them.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// nodeName is what the cluster calls its only node, and where the API server reaches it.
const nodeName = "localhost"

// cluster is a Kubernetes cluster, and a client of it that may do everything.
type cluster struct {
	t   *testing.T
	dir string
	url string // of the API server
	// kubeletURL is the kubelet's, for which the API server is no proxy on the loopback.
	kubeletURL string
	ca         *authority
	api        *http.Client
}

// newCluster starts a cluster without nodes.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), ca: newAuthority(t)}
	ports := freePorts(t, 5)
	c.url = "https://" + ports[2]
	c.write("ca.crt", c.ca.pem)
	c.write("apiserver.crt", c.ca.issue("kube-apiserver"))
	c.write("accounts.key", c.ca.issue("accounts"))
	admin := c.ca.issue("admin", "system:masters")
	pair, err := tls.X509KeyPair(admin, admin)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.ca.pem)
	c.api = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}},
	}}
	t.Cleanup(c.api.CloseIdleConnections)

	c.start("etcd", func(ctx context.Context) error {
		return answers(ctx, http.DefaultClient, "http://"+ports[0]+"/readyz")
	},
		"--data-dir", c.path("etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", "http://"+ports[0], "--advertise-client-urls", "http://"+ports[0],
		"--listen-peer-urls", "http://"+ports[1])
	host, port, _ := strings.Cut(ports[2], ":")
	c.start("kube-apiserver", func(ctx context.Context) error {
		return answers(ctx, c.api, c.url+"/readyz")
	},
		"--etcd-servers", "http://"+ports[0], "--bind-address", host, "--secure-port", port,
		"--tls-cert-file", c.path("apiserver.crt"), "--tls-private-key-file", c.path("apiserver.crt"),
		"--client-ca-file", c.path("ca.crt"), "--authorization-mode", "Node,RBAC",
		"--enable-admission-plugins", "NodeRestriction", "--allow-privileged",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", c.path("accounts.key"),
		"--service-account-signing-key-file", c.path("accounts.key"),
		"--service-cluster-ip-range", "10.96.0.0/16", "--endpoint-reconciler-type", "none")
	for i, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		config := c.kubeconfig(name, "system:"+name)
		host, port, _ := strings.Cut(ports[3+i], ":")
		args := []string{"--kubeconfig", config, "--leader-elect=false", "--bind-address", host,
			"--secure-port", port, "--cert-dir", c.path(name)}
		if name == "kube-controller-manager" {
			args = append(args, "--service-account-private-key-file", c.path("accounts.key"),
				"--root-ca-file", c.path("ca.crt"),
				"--use-service-account-credentials")
		}
		c.start(name, func(ctx context.Context) error {
			insecure := &http.Client{Transport: &http.Transport{
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			}}
			defer insecure.CloseIdleConnections()
			return answers(ctx, insecure, "https://"+ports[3+i]+"/healthz")
		}, args...)
	}
	return c
}

// kubelet is where a kubelet finds its node, and keeps what is its own.
type kubelet struct {
	runtime, images string // sockets
	dir             string
	cgroup          string
}

// of is a kubelet whose image calls go to the node's micad. What it leaves goes with the node.
func of(n *node.Node) kubelet {
	return kubelet{n.Address(), n.MicadAddress(), filepath.Join(n.Dir, "kubelet"), n.Namespace()}
}

// kubelet starts a kubelet, and waits until the cluster has its node.
func (c *cluster) kubelet(k kubelet, kubeconfig string) {
	c.t.Helper()
	host, port, _ := strings.Cut(freePorts(c.t, 1)[0], ":")
	c.kubeletURL = "https://localhost:" + port
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
address: %s
port: %s
tlsCertFile: %s
tlsPrivateKeyFile: %[3]s
healthzPort: 0
containerRuntimeEndpoint: unix://%s
imageServiceEndpoint: unix://%s
cgroupDriver: cgroupfs
cgroupRoot: /%s
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
imageMinimumGCAge: 1s
imageMaximumGCAge: 1m
evictionHard: {memory.available: 1Mi}
podLogsDir: %s
volumePluginDir: %s
resolvConf: ""
syncFrequency: 1s
`, host, port, c.path("kubelet-server.crt"), k.runtime, k.images, k.cgroup,
		c.path("pods"), c.path("plugins"))
	c.write("kubelet.yaml", []byte(config))
	c.write("kubelet-server.crt", c.ca.issue("kubelet"))
	c.start("kubelet", func(context.Context) error {
		var node corev1.Node
		if err := c.get("/api/v1/nodes/"+nodeName, &node); err != nil {
			return err
		}
		for _, is := range node.Status.Conditions {
			if is.Type == corev1.NodeReady && is.Status != corev1.ConditionTrue {
				return fmt.Errorf("the node is not ready: %s", is.Message)
			}
		}
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("the node has taints: %v", node.Spec.Taints)
		}
		return nil
	}, "--config", c.path("kubelet.yaml"), "--kubeconfig", kubeconfig, "--root-dir",
		k.dir, "--cert-dir", c.path("kubelet-certs"), "--hostname-override", nodeName)
}

// start starts a daemon, which ends with the test, and waits until it is ready.
func (c *cluster) start(
	name string, ready func(context.Context) error, args ...string,
) *node.Process {
	c.t.Helper()
	bin, err := node.Binary(name)
	if err != nil {
		c.t.Fatal(err)
	}
	log := c.path(name + ".log")
	p, err := node.StartProcess(fixture.Context(c.t), name, log, nil, append([]string{bin}, args...),
		ready)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("the log of %s ends:\n%s", name, p.Tail(8000))
		}
		p.Kill()
	})
	return p
}

// kubeconfig writes one for a user of some groups, and returns its path.
func (c *cluster) kubeconfig(name, user string, groups ...string) string {
	c.t.Helper()
	c.write(name+".pem", c.ca.issue(user, groups...))
	c.write(name+".conf", fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: test
contexts: [{name: test, context: {cluster: test, user: test}}]
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: test, user: {client-certificate: %q, client-key: %[3]q}}]
`, c.url, c.path("ca.crt"), c.path(name+".pem")))
	return c.path(name + ".conf")
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) write(name string, content []byte) {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), content, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// get reads what the API has at a path.
func (c *cluster) get(path string, into any) error {
	return c.getFrom(c.url+path, into)
}

func (c *cluster) getFrom(url string, into any) error {
	return c.do(http.MethodGet, url, nil, into)
}

// create makes an object of those at a path.
func (c *cluster) create(t *testing.T, path string, object any) {
	t.Helper()
	if err := c.do(http.MethodPost, c.url+path, object, nil); err != nil {
		t.Fatal(err)
	}
}

// do is a call of the API. into may be a *string, for what is no JSON.
func (c *cluster) do(method, url string, object, into any) error {
	var body bytes.Buffer
	if object != nil {
		if err := json.NewEncoder(&body).Encode(object); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, url, &body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.api.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, b)
	}
	switch into := into.(type) {
	case nil:
		return nil
	case *string:
		*into = string(b)
		return nil
	}
	return json.Unmarshal(b, into)
}

// answers is nil where a URL answers with status 200.
func answers(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
