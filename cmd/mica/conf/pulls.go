package conf

import "github.com/containerd/platforms"

// CRIHosts is where CRI looks for hosts.toml where its configuration does not say.
const CRIHosts = "/etc/containerd/certs.d:/etc/docker/certs.d"

// RunsHere says whether images of a platform of unpack_config run on this machine; "" is any.
func RunsHere(platform string) bool {
	p, err := platforms.Parse(platform)
	return platform == "" || err == nil && platforms.NewMatcher(p).Match(platforms.DefaultSpec())
}

// LocalPull names the setting among those of CRI's images for which CRI pulls by itself, not by the
// transfer service; "" if there is none. containerd's function CheckLocalImagePullConfigs has the
// list (2.1 to 2.4).
func LocalPull(images Table) string {
	for _, key := range []string{
		"use_local_image_pull", "discard_unpacked_layers", "image_pull_with_sync_fs",
	} {
		if images[key] == true {
			return key + " = true"
		}
	}
	for _, key := range []string{"mirrors", "configs", "auths"} {
		if len(Sub(images, "registry", key)) > 0 {
			return "registry." + key
		}
	}
	if n := images["max_concurrent_downloads"]; n != nil && n != int64(3) {
		return "max_concurrent_downloads"
	}
	if images["disable_snapshot_annotations"] == false {
		return "disable_snapshot_annotations = false"
	}
	return ""
}
