package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// config is what is known here of a kubeconfig's current context. Paths in it are absolute, as in
// those that are made for nodes.
// https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
type config struct {
	cluster cluster
	user    user
}

type cluster struct {
	Server     string
	CA         string `yaml:"certificate-authority"`
	CAData     string `yaml:"certificate-authority-data"`
	ServerName string `yaml:"tls-server-name"`
}

type user struct {
	Cert      string `yaml:"client-certificate"`
	CertData  string `yaml:"client-certificate-data"`
	Key       string `yaml:"client-key"`
	KeyData   string `yaml:"client-key-data"`
	Token     string
	TokenFile string `yaml:"tokenFile"`
	// Exec is a program that makes the user's credentials.
	Exec *struct {
		APIVersion string `yaml:"apiVersion"`
		Command    string
		Args       []string
		Env        []struct{ Name, Value string }
	}
}

// entry is an entry of any of the lists in a kubeconfig.
type entry struct {
	Name    string
	Context struct{ Cluster, User string }
	Cluster cluster
	User    user
}

// load reads a kubeconfig.
func load(path string) (*config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Current                   string `yaml:"current-context"`
		Contexts, Clusters, Users []entry
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		return nil, errors.New("it is not YAML") // without the error: it may quote the file
	}
	named := func(list []entry, name string) entry {
		for _, e := range list {
			if e.Name == name {
				return e
			}
		}
		return entry{}
	}
	at := named(file.Contexts, file.Current).Context
	c := &config{named(file.Clusters, at.Cluster).Cluster, named(file.Users, at.User).User}
	if !strings.HasPrefix(c.cluster.Server, "https://") {
		return nil, fmt.Errorf("its current context %q has no cluster with an https server",
			file.Current)
	}
	return c, nil
}

// client returns a client for the cluster, and completes the user's token.
func (c *config) client(ctx context.Context) (*http.Client, error) {
	if c.user.Exec != nil {
		if err := c.ask(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", c.user.Exec.Command, err)
		}
	}
	u := &c.user
	ca, err1 := read(c.cluster.CA, c.cluster.CAData)
	cert, err2 := read(u.Cert, u.CertData)
	key, err3 := read(u.Key, u.KeyData)
	token, err4 := read(u.TokenFile, "")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	if token != nil {
		u.Token = string(bytes.TrimSpace(token))
	}
	t := &tls.Config{ServerName: c.cluster.ServerName, MinVersion: tls.VersionTLS12}
	if ca != nil {
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("its certificate-authority has no certificate")
		}
	}
	if cert != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: t,
	}}, nil
}

// read returns data, which is base64, or else what a file has; nil where neither is named.
func read(path, data string) ([]byte, error) {
	switch {
	case data != "":
		return base64.StdEncoding.DecodeString(data)
	case path == "":
		return nil, nil
	}
	return os.ReadFile(path)
}

// ask runs the user's program, whose answer takes the place of what else the user has.
// https://kubernetes.io/docs/reference/config-api/client-authentication.v1/
func (c *config) ask(ctx context.Context) error {
	p := c.user.Exec
	cmd := exec.CommandContext(ctx, p.Command, p.Args...)
	cmd.WaitDelay = time.Second // a grandchild may hold the pipe
	cmd.Env = append(os.Environ(), fmt.Sprintf("KUBERNETES_EXEC_INFO="+
		`{"apiVersion": %q, "kind": "ExecCredential", "spec": {"interactive": false}}`, p.APIVersion))
	for _, e := range p.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var answer struct {
		Status struct{ Token, ClientCertificateData, ClientKeyData string }
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return errors.New("its answer is not JSON") // without what it says: secrets
	}
	s := answer.Status
	encode := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	c.user = user{Exec: p, Token: s.Token, CertData: encode(s.ClientCertificateData),
		KeyData: encode(s.ClientKeyData)}
	return nil
}
