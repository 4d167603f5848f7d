"""A WebRTC viewer made with aiortc: joins, counts decoded frames, hears the data channel, prints one JSON object.

Frames are decoded by FFmpeg (PyAV), so what is counted here is a picture, not a packet.
"""

import argparse
import asyncio
import json
import time
import urllib.error
import urllib.request

import aioice.ice
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

# aioice leaves out loopback, which is where the tests run.
aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def delete(url):
    with urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=20) as answer:
        return answer.status


async def watch(args, resume=None):
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    channel = connection.createDataChannel("parameters")
    transceiver = connection.addTransceiver("video", direction=args.direction)
    codecs = RTCRtpReceiver.getCapabilities("video").codecs
    wanted = [codec for codec in codecs if codec.mimeType.lower() == f"video/{args.codec}"]
    transceiver.setCodecPreferences(wanted)
    messages, opened, track = [], asyncio.Event(), asyncio.get_running_loop().create_future()
    stopped, refused = asyncio.Event(), asyncio.Event()
    # What is still awaited, in this order.
    after = args.after.split(",") if args.after else []

    @channel.on("open")
    def _():
        opened.set()

    @channel.on("message")
    def _(text):
        message = json.loads(text)
        messages.append({"at": time.monotonic(), **message})
        if message["type"] == "stream_stopped":
            stopped.set()
        if after and after[0] in (message["type"], message.get("state")):
            after.pop(0)
        if message["type"] == "error":
            refused.set()

    @connection.on("track")
    def _(incoming):
        if not track.done():
            track.set_result(incoming)

    await connection.setLocalDescription(await connection.createOffer())
    body = {
        "sdp": connection.localDescription.sdp,
        "type": connection.localDescription.type,
        "initialParameters": json.loads(args.parameters),
        **({"resumeToken": resume} if resume else {}),
    }
    status, answer = await asyncio.to_thread(post, f"{args.url}/api/v1/webrtc/offer", body)
    if status != 200:
        await connection.close()
        return {"status": status, "answer": answer}
    print(json.dumps({"session": answer["sessionId"]}), flush=True)
    await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))

    incoming = await asyncio.wait_for(track, 20)
    await asyncio.wait_for(opened.wait(), 20)
    if args.send:
        channel.send(args.send)
    frames, sizes, deviations, ended, times = 0, set(), [], None, []
    wanted = args.frames
    try:
        while frames < wanted:
            frame = await asyncio.wait_for(incoming.recv(), args.patience if frames else 30)
            frames += 1
            times.append(time.monotonic())
            if after:
                wanted = frames + args.frames
            picture = frame.to_ndarray(format="rgb24")
            sizes.add((frame.width, frame.height))
            deviations.append(float(picture.std()))
    except (MediaStreamError, asyncio.TimeoutError) as error:
        ended = type(error).__name__
    if args.send:
        await asyncio.wait_for(refused.wait(), 20)
    if args.until_stopped:
        await asyncio.wait_for(stopped.wait(), 60)
    if args.delete:
        await asyncio.to_thread(delete, f"{args.url}/api/v1/webrtc/offer/{answer['sessionId']}")
        await asyncio.wait_for(stopped.wait(), 20)
    codecs = [line.split(" ")[1].split("/")[0] for line in answer["sdp"].splitlines() if line.startswith("a=rtpmap:")]
    await connection.close()
    return {
        "status": status,
        "session": answer["sessionId"],
        "frames": frames,
        "sizes": sorted(sizes),
        "deviation": sum(deviations) / max(len(deviations), 1),
        "codecs": codecs,
        "messages": messages,
        "ended": ended,
        "now": time.monotonic(),
        "longest_gap": max((after - before for before, after in zip(times, times[1:])), default=0),
        "resume_token": answer["resumeToken"],
    }


async def ready(args):
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{args.url}/ready", timeout=5):
                return
        except OSError:
            await asyncio.sleep(0.05)
    raise TimeoutError(f"{args.url} was not ready within 30 s")


async def watch_twice(args):
    """Loses its server while it watches, and goes on with the session once there is one again."""
    first = await watch(args)
    await ready(args)
    args.frames, args.after = args.resumed_frames, None
    return {"first": first, "second": await watch(args, first["resume_token"])}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--codec", default="vp8", choices=["h264", "vp8", "rtx"])
    parser.add_argument("--direction", default="recvonly", choices=["recvonly", "sendrecv"])
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--parameters", default='{"prompts": [{"text": "a red fox", "weight": 1}]}')
    parser.add_argument("--send", help="a message for the data channel once it is open, which is to be refused")
    parser.add_argument("--after", help="count frames only once these messages, or session states, have come: one,then another")
    parser.add_argument("--patience", type=float, default=30, help="seconds without a frame that end the stream")
    parser.add_argument("--resume", help="the resume token of an earlier answer")
    parser.add_argument("--resumed-frames", type=int, help="connect again when the stream ends, for so many frames")
    parser.add_argument("--until-stopped", action="store_true", help="stay until stream_stopped arrives")
    parser.add_argument("--delete", action="store_true", help="end the session by DELETE")
    args = parser.parse_args()
    seen = watch_twice(args) if args.resumed_frames else watch(args, args.resume)
    print(json.dumps(asyncio.run(asyncio.wait_for(seen, 150))))


main()
