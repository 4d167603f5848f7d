"""A NATS client that knows nothing of kinemesh but its subjects: discovery, ops, errors, permissions. Prints one JSON object."""

import argparse
import asyncio
import json

import nats
from nats.errors import NoRespondersError, TimeoutError as NatsTimeout


async def connect(args, user, errors):
    async def on_error(error):
        errors.append(str(error))

    with open(f"{args.credentials}/{user}.password") as file:
        password = file.read().strip()
    return await nats.connect(
        args.url, user=user, password=password, inbox_prefix=f"_INBOX_{user}".encode(), error_cb=on_error
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
    ops = await connect(args, "ops", errors)
    info = await services(ops)
    status = await ops.request(f"km.v1.ops.{args.cell}.status", b"", timeout=5)
    bad = await ops.request(f"km.v1.ops.{args.cell}.reset", b'{"session": 7}', timeout=5)
    result = {
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
