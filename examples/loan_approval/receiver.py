"""Prints the alerts that it receives: a stand-in for your chat.

python examples/loan_approval/receiver.py &
export AGENTCORE_ALERT_URLS=json://127.0.0.1:8099/
"""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer


class Receiver(BaseHTTPRequestHandler):
    """Prints the title and the message of each alert."""

    def do_POST(self) -> None:
        """Take an alert."""
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(f"ALERT {content['title']}: {content['message'].splitlines()[0]}", flush=True)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing else."""


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", 8099), Receiver).serve_forever()
