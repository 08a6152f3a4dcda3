"""Prepares every `[maintenance]` that the documentation shows for `torrust-maintenance check`.

settings.py ROOT FILE...

Of a .md file each ```toml block that has a [maintenance] table or a part of one, of a .toml
file the whole, becomes ROOT/NAME/tracker.toml, and NAME is printed with where it is from. What
an excerpt leaves out is filled in. Every absolute path is moved below ROOT/NAME, and the
directories that it needs are made: whether a path exists here is not the question.
"""

import json
import pathlib
import re
import sys
import tomllib

# The least a tracker wants.
BASE = {
    "metadata": {"schema_version": "2.0.0"},
    "logging": {"threshold": "info"},
    "core": {"listed": False, "private": False},
    "maintenance": {"enabled": True},
}
BLOCK = re.compile(r"^( *)```toml\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
ABSOLUTE = re.compile(r"(unix:)?(/.*)")


def merged(base, over):
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: merged(base.get(key), over.get(key, base.get(key))) for key in {**base, **over}}
    return over


def blocks(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        yield 1, text
        return
    for block in BLOCK.finditer(text):
        indent, toml = block.groups()
        yield text.count("\n", 0, block.start()) + 2, re.sub(f"^{indent}", "", toml, flags=re.MULTILINE)


def moved(value, root):
    if isinstance(value, dict):
        return {key: moved(inner, root) for key, inner in value.items()}
    if isinstance(value, list):
        return [moved(inner, root) for inner in value]
    if isinstance(value, str) and (absolute := ABSOLUTE.fullmatch(value)):
        scheme, path = absolute.groups(default="")
        path = root / path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"{scheme}{path}"
    return value


def written(value):
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)} = {written(inner)}" for key, inner in value.items())
        return "{ " + inner + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def prepare(root, toml):
    document = tomllib.loads(toml)
    if "maintenance" not in document:
        return False
    document = merged(BASE, document)
    maintenance = document["maintenance"]
    if not {"window", "schedule"} & maintenance.keys():
        maintenance["window"] = "03:00-03:05"
    root.mkdir()
    for relative in ("storage/tracker/lib/database", "storage/tracker/run", "storage/tracker/etc"):
        (root / relative).mkdir(parents=True)
    document = moved(document, root)
    lines = (f"{json.dumps(key)} = {written(value)}\n" for key, value in document.items())
    (root / "tracker.toml").write_text("".join(lines), encoding="utf-8")
    # One that is named must be there, and be nobody else's.
    token = maintenance.get("readiness", {}).get("token_file")
    if token:
        token = root / document["maintenance"]["readiness"]["token_file"]
        token.write_text("0123456789abcdef0123456789abcdef\n", encoding="utf-8")
        token.chmod(0o600)
    header = document["maintenance"].get("notify", {}).get("webhook_header_file")
    if header:
        (root / header).write_text("Authorization: Bearer 0123456789abcdef\n", encoding="utf-8")
    return True


def main():
    root, *files = map(pathlib.Path, sys.argv[1:])
    number = 0
    for path in files:
        for line, toml in blocks(path):
            name = f"{number:03}"
            if prepare(root / name, toml):
                print(f"{name} {path}:{line}")
                number += 1


main()
