"""What a check of the Compose files needs beyond Compose itself.

compose.py flatten FILE...   the files merged into one that Compose 1 reads, too
compose.py judge             what speaks against the resolved configuration on standard input
"""

import sys

import yaml

SERVICES = {"tracker", "sidecar", "restore"}
DATABASE = "/var/lib/torrust/tracker/database"
# What a service may write to.
WRITABLE = {
    "tracker": {"/var/lib/torrust/tracker", DATABASE, "/run/torrust"},
    "sidecar": {"/var/lib/torrust/backups"},
    "restore": {DATABASE},
}


class Reset:
    """`!reset`: what an earlier file said is forgotten."""


class Loader(yaml.SafeLoader):
    """Knows Compose's own tag."""


Loader.add_constructor("!reset", lambda loader, node: Reset())


def merged(base, over):
    if isinstance(base, dict) and isinstance(over, dict):
        keys = {**base, **over}
        merge = {key: merged(base.get(key), over.get(key, base.get(key))) for key in keys}
        return {key: value for key, value in merge.items() if not isinstance(value, Reset)}
    return over


def flatten(paths):
    document = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            document = merged(document, yaml.load(file, Loader))
    # Compose 1 does not know the name of a project.
    document.pop("name", None)
    yaml.safe_dump(document, sys.stdout)


def mount(entry):
    """Source, target and whether it is read-only, of either syntax."""
    if isinstance(entry, dict):
        return entry.get("source"), entry["target"], entry.get("read_only", False)
    source, target, *mode = entry.split(":")
    return source, target, mode == ["ro"]


def published(entry):
    """The port in the container, and the address of the host, of either syntax."""
    if isinstance(entry, dict):
        return int(entry["target"]), entry.get("host_ip", "")
    *host, port = str(entry).split("/")[0].split(":")
    return int(port), host[0] if len(host) == 2 else ""


def objections(document):
    services = document["services"]
    if set(services) != SERVICES:
        yield f"the services are {sorted(services)}, not {sorted(SERVICES)}"
        return
    for name, service in services.items():
        if service.get("user", "0").split(":")[0] in ("", "0", "root"):
            yield f"{name} runs as root"
        if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
            yield f"{name} has capabilities"
        if service.get("security_opt") != ["no-new-privileges:true"]:
            yield f"{name} may gain privileges, or says more than that it may not"
        if not service.get("read_only"):
            yield f"{name} can write to its root"
        for key in ("privileged", "pid", "ipc", "devices", "userns_mode", "volumes_from"):
            if service.get(key):
                yield f"{name} has {key}"
        mounts = [mount(entry) for entry in service.get("volumes", [])]
        if any("docker.sock" in str(source) or "containerd" in str(source) for source, *_ in mounts):
            yield f"{name} has the container engine's socket"
        writable = {target for _, target, read_only in mounts if not read_only}
        if writable != WRITABLE[name]:
            yield f"{name} can write to {sorted(writable)}, not to {sorted(WRITABLE[name])}"
        if DATABASE not in (target for _, target, _ in mounts):
            yield f"{name} does not see the database's directory"
        for port, address in map(published, service.get("ports", [])):
            if port not in (6969, 7070) and address != "127.0.0.1":
                yield f"{name} publishes port {port} on more than loopback"
            if port == 1414:
                yield f"{name} publishes the readiness endpoint"
    for name in ("tracker", "sidecar"):
        if not services[name].get("healthcheck"):
            yield f"{name} has no health check"
    for name in ("sidecar", "restore"):
        networks = services[name].get("networks") or {}
        internal = all((document["networks"][network] or {}).get("internal") for network in networks)
        if services[name].get("network_mode") != "none" and not (networks and internal):
            yield f"{name} has a network that leads out"


def main():
    match sys.argv[1:]:
        case ["flatten", *paths] if paths:
            flatten(paths)
        case ["judge"]:
            against = list(objections(yaml.safe_load(sys.stdin)))
            print("\n".join(against), end="\n" if against else "")
            sys.exit(bool(against))
        case _:
            sys.exit(__doc__)


main()
