// Package helm tests the chart that installs Mica on nodes, script/chart, by Helm's own code.
package helm

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

const dir = "../../script/chart"

// render is the chart with values as `helm install mica --namespace mica` has it, by kind. What
// Kubernetes does not know is an error.
func render(
	t *testing.T, values map[string]any,
) (ds appsv1.DaemonSet, c *corev1.ConfigMap, notes string) {
	t.Helper()
	ch, err := load()
	if err != nil {
		t.Fatal(err)
	}
	all, err := util.ToRenderValues(ch, values,
		common.ReleaseOptions{Name: "mica", Namespace: "mica"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(ch, all)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		switch {
		case strings.HasSuffix(name, "NOTES.txt"):
			notes = text
			continue
		case strings.TrimSpace(text) == "":
			continue
		case strings.HasSuffix(name, "daemonset.yaml"):
			err = yaml.UnmarshalStrict([]byte(text), &ds)
		case strings.HasSuffix(name, "configmap.yaml"):
			c = &corev1.ConfigMap{}
			err = yaml.UnmarshalStrict([]byte(text), c)
		default:
			err = fmt.Errorf("an unknown file")
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
	}
	return ds, c, notes
}

func load() (*chartv2.Chart, error) { return loader.Load(dir) }

func TestLint(t *testing.T) {
	l := lint.RunAll(dir, map[string]any{"config": "mode = 'fuse'\n"}, "mica")
	for _, m := range l.Messages {
		if !strings.Contains(m.Error(), "icon is recommended") {
			t.Error(m)
		}
	}
}

// TestTargets: each distribution's nodes are set up as what they are.
func TestTargets(t *testing.T) {
	for distribution, want := range map[string][]string{
		"k3s":        {"node", "install", "k3s", "--bin=/usr/local/bin", "--restart=true"},
		"rke2":       {"node", "install", "rke2", "--bin=/usr/local/bin", "--restart=true"},
		"eks":        {"node", "install", "eks", "--bin=/usr/local/bin", "--restart=true"},
		"gke":        {"node", "install", "containerd", "--bin=/home/kubernetes/bin", "--restart=true"},
		"kubeadm":    {"node", "install", "kubeadm", "--bin=/usr/local/bin", "--restart=true"},
		"containerd": {"node", "install", "containerd", "--bin=/usr/local/bin", "--restart=true"},
	} {
		t.Run(distribution, func(t *testing.T) {
			ds, config, notes := render(t, map[string]any{"distribution": distribution})
			pod := ds.Spec.Template.Spec
			if len(pod.InitContainers) != 1 || len(pod.Containers) != 1 {
				t.Fatalf("containers: %+v", pod)
			}
			init := pod.InitContainers[0]
			if !slices.Equal(init.Args, want) {
				t.Errorf("args %q, want %q", init.Args, want)
			}
			// without these it could not become a process of the host
			if !pod.HostPID || init.SecurityContext.Privileged == nil ||
				!*init.SecurityContext.Privileged {
				t.Errorf("the pod is %+v", pod)
			}
			if init.Image != "ghcr.io/mica-snapshotter/mica:0.0.0" {
				t.Errorf("image %s", init.Image)
			}
			if config != nil || !strings.Contains(notes, "remove=true") {
				t.Errorf("%+v, notes %s", config, notes)
			}
			for label, value := range ds.Spec.Selector.MatchLabels {
				if ds.Spec.Template.Labels[label] != value {
					t.Errorf("the selector's %s is not the pods'", label)
				}
			}
		})
	}
}

// TestValues: all that can be said reaches the pods.
func TestValues(t *testing.T) {
	const text = "mode = 'fuse'\n[fetch]\nfill = \"none\" # \"quoted\"\n"
	ds, config, notes := render(t, map[string]any{
		"remove": true, "restart": false, "bin": "/opt/bin", "config": text,
		"image":             map[string]any{"repository": "mirror:5000/mica", "tag": "1"},
		"imagePullSecrets":  []any{map[string]any{"name": "secret"}},
		"podLabels":         map[string]any{"team": "a", "app.kubernetes.io/name": "other"},
		"podAnnotations":    map[string]any{"note": "b"},
		"affinity":          map[string]any{"nodeAffinity": map[string]any{}},
		"priorityClassName": "system-node-critical",
	})
	pod := ds.Spec.Template.Spec
	init := pod.InitContainers[0]
	want := []string{"node", "remove", "kubeadm", "--bin=/opt/bin", "--restart=false"}
	if !slices.Equal(init.Args, want) || init.Image != "mirror:5000/mica:1" {
		t.Errorf("args %q of %s", init.Args, init.Image)
	}
	if config == nil || config.Data["config.toml"] != text {
		t.Errorf("the configuration is %+v", config)
	}
	if len(init.VolumeMounts) != 1 || init.VolumeMounts[0].MountPath != "/etc/mica" {
		t.Errorf("mounts %+v", init.VolumeMounts)
	}
	if pod.Affinity == nil || pod.PriorityClassName == "" || len(pod.ImagePullSecrets) != 1 ||
		ds.Spec.Template.Labels["team"] != "a" || ds.Spec.Template.Annotations["note"] != "b" ||
		ds.Spec.Template.Labels["app.kubernetes.io/name"] != "mica" {
		t.Errorf("the pods are %+v", ds.Spec.Template)
	}
	if pod.Containers[0].ReadinessProbe != nil || !strings.Contains(notes, "helm uninstall") {
		t.Errorf("a removal is ready when micad answers; notes %s", notes)
	}
	other, _, _ := render(t, map[string]any{"config": "mode = 'erofs'\n"})
	if fmt.Sprint(other.Spec.Template.Annotations) == fmt.Sprint(ds.Spec.Template.Annotations) {
		t.Error("another configuration does not reach pods that run")
	}
}

// TestRefused: values that nothing is known of are no silent default.
func TestRefused(t *testing.T) {
	for name, values := range map[string]map[string]any{
		"distribution": {"distribution": "talos"},
		"misspelt":     {"configuration": "x"},
		"relative":     {"bin": "bin"},
		"type":         {"remove": "yes"},
	} {
		ch, err := load()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := util.ToRenderValues(ch, values, common.ReleaseOptions{}, nil); err == nil {
			t.Errorf("%s: %v is taken", name, values)
		}
	}
}
