"""Free ports on loopback."""

import random
import socket

# Below the range from which Linux takes ports for outgoing connections (32768 and up): a port found free here
# stays free until the server has started, unless another run picks it, and then the start is tried again.
FIRST, LAST = 20_000, 32_000


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randint(FIRST, LAST)
        if port not in found and is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Tell whether a server could listen on `port`."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
