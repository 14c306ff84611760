package main

import (
	"fmt"
	"strings"

	"github.com/mica-snapshotter/mica/integration/images"
)

// workload is an image and the program in it that is started.
type workload struct {
	name   string
	about  string
	recipe images.Recipe
}

// run is the start of every program: a shell that says that it runs.
const run = "#!/bin/sh\necho " + images.Started + "\n"

func install(name string, packages ...string) images.Step {
	return images.Step{Name: name,
		Script: "apt-get install -y -q --no-install-recommends " + strings.Join(packages, " ")}
}

// app is the layer with /app/run, a shell script, and one file beside it.
func app(script, file, content string) images.Step {
	return images.Step{Name: "program", Script: fmt.Sprintf("mkdir -p /app\ncat >/app/run <<'EOF'\n%s%s\nEOF\ncat >/app/%s <<'EOF'\n%sEOF\nchmod 755 /app/run",
		run, script, file, content)}
}

// common is below all programs. Without init, nothing may start services at installation.
var common = images.Step{Name: "common", Script: `printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
apt-get install -y -q --no-install-recommends ca-certificates curl netbase tzdata procps`}

var python = install("python", "python3")

var compiler = install("gcc", "gcc", "libc6-dev")

func recipe(steps ...images.Step) images.Recipe {
	return images.Recipe{Steps: steps, Cmd: []string{"/app/run"}}
}

// workloads is what can be started. All programs print the same lines
// whenever and by whatever snapshotter they run, and do their work without a
// network.
var workloads = []workload{
	{"hello", "a shell prints a line", recipe(common,
		app("echo hello\necho "+images.Ready, "hello.txt", "hello\n"))},

	{"python", "Python imports a few modules of its library", recipe(common, python,
		app("exec python3 /app/main.py", "main.py", `import json, hashlib, re
print(json.dumps({"sha256": hashlib.sha256(b"x").hexdigest(), "found": re.findall("a+", "baac")}))
print("`+images.Ready+`", flush=True)
`))},

	{"pandas", "Python with numpy, scipy and pandas inverts a matrix", recipe(common, python,
		install("libraries", "python3-numpy", "python3-scipy", "python3-pandas"),
		app("exec python3 /app/main.py", "main.py", `import numpy as np
import pandas as pd
import scipy.linalg

a = np.arange(16.0).reshape(4, 4) + 7 * np.eye(4)
inverse = pd.DataFrame(scipy.linalg.inv(a))
print(inverse.describe().shape, bool(np.allclose(inverse.to_numpy() @ a, np.eye(4))))
print("`+images.Ready+`", flush=True)
`))},

	{"node", "Node.js serves itself a page", recipe(common, install("node", "nodejs"),
		app("exec node /app/main.js", "main.js", `const http = require("http"), crypto = require("crypto");
const server = http.createServer((_, res) => res.end(crypto.createHash("sha256").update("x").digest("hex")));
server.listen(0, "127.0.0.1", () => http.get({port: server.address().port, host: "127.0.0.1"}, (res) => {
  res.setEncoding("utf8");
  res.on("data", (text) => console.log(text));
  res.on("end", () => { console.log("`+images.Ready+`"); process.exit(0); });
}));
`))},

	{"redis", "a Redis server answers a ping", recipe(common, install("redis", "redis-server"),
		app(`redis-server /app/redis.conf >/dev/null &
until redis-cli -s /tmp/redis.sock ping 2>/dev/null | grep -q PONG; do sleep 0.02; done
echo `+images.Ready+`
wait`, "redis.conf", "port 0\nunixsocket /tmp/redis.sock\nsave \"\"\ndaemonize no\n"))},

	{"gcc", "GCC compiles a program, which runs", recipe(common, compiler,
		app("gcc -O2 -o /tmp/hello /app/hello.c && exec /tmp/hello", "hello.c", `#include <stdio.h>
int main(void) { puts("hello"); puts("`+images.Ready+`"); return 0; }
`))},

	// some 2.2 GB unpacked, in three layers of compilers
	{"large", "one small tool out of an image with four compilers", recipe(common, compiler,
		install("ghc", "ghc"), install("go", "golang-go"), install("rust", "rustc", "clang"),
		app("gofmt /app/main.go && echo "+images.Ready, "main.go", "package   main\nfunc main( ) { println( 1 ) }\n"))},
}
