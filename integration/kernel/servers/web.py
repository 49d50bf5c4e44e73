"""A web server for tests: web.py PORT FILE. It keeps each request in FILE; what it answers is in the path."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, kept = int(sys.argv[1]), sys.argv[2]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        said = {"path": self.path, "authorization": self.headers.get("Authorization"), "body": json.loads(body)}
        with open(kept, "a") as file:
            file.write(json.dumps(said) + "\n")
        if self.path.startswith("/slow"):
            time.sleep(600)
        self.send_response({"/redirect": 302, "/broken": 500}.get(self.path, 200))
        if self.path == "/redirect":
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        if self.path == "/big":
            try:
                self.wfile.write(b"x" * 5_000_000)
            except OSError:
                pass

    do_PUT = do_POST

    def log_message(self, *arguments):
        pass


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
