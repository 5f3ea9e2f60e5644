"""A program for one entry, as the suite's own but quick: what it does, the entry's name says.

    python entry_worker.py EXCHANGE

It counts its starts in the folder STARTS of the environment.
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path

exchange = Path(sys.argv[1])
job = json.loads((exchange / "job.json").read_text())
entry = job["entry"]
with open(Path(os.environ["STARTS"]) / entry, "a") as file:
    file.write(f"{os.getpid()}\n")
(exchange / "step.txt").write_text("structure factors")
if entry == "1seg":
    ctypes.string_at(0)
elif entry == "1mem":
    taken = []
    while True:  # more than the limit, then it waits to be found out
        if len(taken) < 32:
            taken.append(b"x" * 2**24)
        time.sleep(0.002)
elif entry == "1end":
    while True:
        time.sleep(1)
elif entry == "1odd":
    print("nothing to say")
    sys.exit(3)
elif entry == "1ful":
    print("Cannot write result.json: No space left on device", file=sys.stderr)
    sys.exit(74)
elif entry.startswith("2"):  # slow: is being worked at when somebody is killed
    while not (Path(os.environ["STARTS"]) / "go").exists():
        time.sleep(0.02)
elif entry.startswith("3"):
    raise ValueError(f"{entry} is corrupt")
(exchange / "figure.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
(exchange / "result.json").write_text(json.dumps({"status": "ok", "result": {"entry": entry}, "contracts": {}}))
