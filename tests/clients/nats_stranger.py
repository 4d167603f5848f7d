"""A NATS client that knows nothing of kinemesh but its subjects: discovery, ops, errors, permissions. Prints one JSON object."""

import argparse
import asyncio
import json

import nats
from nats.errors import NoRespondersError, TimeoutError as NatsTimeout


def keeper(errors):
    async def keep(error):
        errors.append(str(error))

    return keep


async def connect(args, user, errors):
    with open(f"{args.credentials}/{user}.password") as file:
        password = file.read().strip()
    return await nats.connect(
        args.url, user=user, password=password, inbox_prefix=f"_INBOX_{user}".encode(), error_cb=keeper(errors)
    )


async def services(client):
    """Every answer to `$SRV.INFO` within a second."""
    inbox = client.new_inbox()
    found = []

    async def collect(message):
        found.append(json.loads(message.data))

    await client.subscribe(inbox, cb=collect)
    await client.publish("$SRV.INFO", b"", reply=inbox)
    for _ in range(100):
        await asyncio.sleep(0.05)
        if len({info["name"] for info in found}) >= 4:
            break
    return found


async def main(args):
    errors = []
    guest = await nats.connect(args.url, error_cb=keeper(errors))
    seen = await guest.request(f"km.v1.ops.{args.cell}.status", b"", timeout=5)
    guest_status = json.loads(seen.data)
    errors.clear()
    try:
        await guest.request(f"km.v1.ops.{args.cell}.shutdown", b"", timeout=1)
        guest_shutdown = "answered"
    except (NatsTimeout, NoRespondersError) as error:
        guest_shutdown = type(error).__name__
    guest_errors = list(errors)
    await guest.close()
    errors.clear()

    ops = await connect(args, "ops", errors)
    info = await services(ops)
    status = await ops.request(f"km.v1.ops.{args.cell}.status", b"", timeout=5)
    bad = await ops.request(f"km.v1.ops.{args.cell}.reset", b'{"session": 7}', timeout=5)
    result = {
        "guest_status": guest_status,
        "guest_shutdown": guest_shutdown,
        "guest_errors": guest_errors,
        "services": info,
        "status": json.loads(status.data),
        "bad_headers": dict(bad.headers or {}),
        "bad_body": bad.data.decode(),
    }
    await ops.close()

    gateway = await connect(args, "gateway", errors)
    errors.clear()
    subject = f"km.v1.cell.{args.cell}.e{args.epoch}.mesh.call"
    try:
        await gateway.request(subject, b"", timeout=2)
        result["mesh_call_as_gateway"] = "answered"
    except (NatsTimeout, NoRespondersError) as error:
        result["mesh_call_as_gateway"] = type(error).__name__
    result["gateway_errors"] = errors
    await gateway.close()
    print(json.dumps(result))


parser = argparse.ArgumentParser()
parser.add_argument("--url", required=True)
parser.add_argument("--credentials", required=True)
parser.add_argument("--cell", default="cell0")
parser.add_argument("--epoch", required=True)
asyncio.run(asyncio.wait_for(main(parser.parse_args()), 60))
