"""Opens models on request in a process of its own: `huggingface_hub` reads its environment when it is imported.

Each line on stdin is a JSON list [reference, options]; each line on stdout is the JSON answer. With the argument
"no-sockets" every use of a socket ends the process.
"""

import hashlib
import json
import os
import sys

NO_SOCKETS = 77


def forbid(event, _arguments):
    if event.startswith("socket."):
        sys.stderr.write(f"socket used: {event}\n")
        os._exit(NO_SOCKETS)


def answer(ref, options):
    from whorl._readers.open import open_model
    from whorl.errors import WhorlError

    lines = []
    try:
        with open_model(ref, progress=lines.append, **options) as model:
            sha = hashlib.sha256()
            for name in model.source.tensors:
                sha.update(name.encode() + model.source.rows(name).tobytes())
            facts = {"typed": model.typed, "resolved": model.resolved, "commit": model.commit}
            return facts | {
                "declared": dict(model.declared),
                "notes": model.notes,
                "sha": sha.hexdigest(),
                "said": lines,
            }
    except WhorlError as error:
        return {"error": type(error).__name__, "message": str(error), "said": lines}


def main():
    if "no-sockets" in sys.argv:
        sys.addaudithook(forbid)
    from whorl._readers import hub_client

    hub_client.RETRY_WAITS_S = (0.0, 0.0, 0.0)  # the server of the tests needs no time to recover
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(*json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
