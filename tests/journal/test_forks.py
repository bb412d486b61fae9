"""A fork in the middle of the journal's work leaves a child that can use its own."""

import os
import subprocess
import sys

_HAMMERED = """
import os, signal, threading
from agentcore.journal import close_journals, open_journal
journal = open_journal()

def hammer():
    while True:
        journal.streams()

for _ in range(4):
    threading.Thread(target=hammer, daemon=True).start()
for _ in range(20):
    pid = os.fork()
    if not pid:
        signal.alarm(10)
        open_journal().streams()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
print("all came back", flush=True)
os._exit(0)
"""


def test_a_child_forked_while_threads_read_does_not_hang(tmp_path):
    environment = {**os.environ, "AGENTCORE_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _HAMMERED], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "all came back", done.stderr


_WITHIN = """
import os, threading
from agentcore._forks import not_forked
entered, leave, left = threading.Event(), threading.Event(), []

def work():
    with not_forked(), not_forked():
        entered.set()
        leave.wait(10)
        left.append(True)

threading.Thread(target=work).start()
entered.wait(10)
threading.Timer(0.2, leave.set).start()
pid = os.fork()
if not pid:
    os._exit(0 if left else 1)
print(os.waitpid(pid, 0)[1])
"""


def test_a_fork_waits_for_the_thread_within():
    done = subprocess.run([sys.executable, "-c", _WITHIN], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0", done.stderr
