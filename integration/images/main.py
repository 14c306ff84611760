"""What the image runs: imports a good part of Python, works a little, and
prints lines that are the same wherever it runs."""
import decimal
import email.message
import hashlib
import http.client
import json
import sqlite3
import ssl
import sys
import unicodedata
import xml.etree.ElementTree as tree

import yaml
from cryptography.hazmat.primitives import hashes

with open("/etc/services", "rb") as f:
    services = f.read()
digest = hashes.Hash(hashes.SHA256())
digest.update(services)
assert digest.finalize() == hashlib.sha256(services).digest()

db = sqlite3.connect(":memory:")
db.execute("create table t (x text)")
db.executemany("insert into t values (?)", [(line,) for line in services.decode().splitlines()])
message = email.message.EmailMessage()
message["Subject"] = unicodedata.normalize("NFC", "ready")
print(json.dumps({
    "services": hashlib.sha256(services).hexdigest(),
    "rows": db.execute("select count(*) from t").fetchone()[0],
    "pi": str(decimal.Decimal(355) / decimal.Decimal(113)),
    "yaml": yaml.safe_load("a: [1, 2, 3]"),
    "xml": tree.fromstring("<a><b/></a>")[0].tag,
    "tls": ssl.OPENSSL_VERSION,
    "http": http.client.HTTP_PORT,
    "python": sys.version.split()[0],
}))
print(message["Subject"], flush=True)
