"""A web server of the tests' own, on the loopback interface, that stands for the sites of the wwPDB."""

import contextlib
import http.server
import threading


class Site:
    """A server whose answers are given by a table: path -> bytes, or a function of (handler, how often
    asked)."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.body = self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def do_GET(self):
                site.asked.append(self.path)
                answer = site.answers.get(self.path, 404)
                if callable(answer):
                    answer = answer(self, site.asked.count(self.path))
                if isinstance(answer, int):
                    self.send_error(answer)
                elif answer is not None:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@contextlib.contextmanager
def only_site(monkeypatch, cache, answers):
    """A server that stands for all three sites: nothing else can be reached, and the cache is this folder."""
    for name in (
        "MMTBX_SFDIFF_PDB_DIR",
        "PDB_MIRROR_PDB",
        "PDB_MIRROR_MMCIF",
        "PDB_MIRROR_STRUCTURE_FACTORS",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    site = Site(answers)
    monkeypatch.setenv("MMTBX_SFDIFF_CACHE_DIR", str(cache))
    monkeypatch.setenv("MMTBX_SFDIFF_RCSB_URL", site.url)
    monkeypatch.setenv("MMTBX_SFDIFF_PDBE_URL", site.url + "/europe")
    monkeypatch.setenv("MMTBX_SFDIFF_PDBJ_URL", site.url + "/japan")
    try:
        yield site
    finally:
        site.close()
