"""A viewer steers, the gateway is killed under the page (someone else starts it again), and the page comes back by
itself. Prints `interrupted` when the page says so, and last one JSON object of what it showed meanwhile."""

import argparse
import json
import os
import signal
import time

import chromium


def parameters(page, args):
    return page.request.get(f"{args.url}/api/v1/session/parameters").json()["parameters"]


def sessions(page, args):
    return page.request.get(f"{args.url}/api/v1/session/metrics").json()["sessions"]


def wait_session(page, args, state, other_than=()):
    """The id of the only session, once it is another one and in this state."""
    end = time.monotonic() + chromium.PATIENCE_MS / 1000
    while time.monotonic() < end:
        for session, about in sessions(page, args).items():
            if session not in other_than and about["state"] == state:
                return session
        page.wait_for_timeout(50)
    raise TimeoutError(f"no session is {state}")


def main(args):
    result = {}
    with chromium.opened(args, []) as page:
        chromium.wait_frames(page, 20)
        page.select_option("#transition", "0")
        chromium.type_prompt(page, "a red kite")
        result["picture"] = chromium.wait_text(page, "#sent", "in the picture")
        result["panel"] = page.inner_text("#live-prompt")
        page.fill("#seed", "7")
        page.press("#seed", "Enter")
        result["seed"] = chromium.wait_text(page, "#settings-sent", "seed 7")
        chromium.type_prompt(page, "half a thou", send=False)

        os.kill(args.pid, signal.SIGKILL)
        killed = time.monotonic()
        chromium.wait_state(page, "interrupted")
        result["noticed_s"] = time.monotonic() - killed
        result["interrupted"] = {
            "connection": page.inner_text("#connection"),
            "curtain": page.inner_text("#curtain"),
            "held": page.is_visible("#held"),
            "fps": page.inner_text("#live-fps"),
            "mesh": page.inner_text("#live-mesh"),
            "stale": page.evaluate("() => document.getElementById('live').classList.contains('stale')"),
        }
        chromium.shot(page, args, "-interrupted")
        print("interrupted", flush=True)
        chromium.wait_state(page, "reconnecting", "unreachable", "waiting", "connecting")
        result["reconnecting"] = page.inner_text("#curtain")
        chromium.wait_state(page, "live")
        chromium.wait_frames(page, 10)
        result["again"] = {"parameters": parameters(page, args), "held": page.is_visible("#held")}

        chromium.type_prompt(page, "half a thou", send=False)
        page.keyboard.press("Escape")
        first = wait_session(page, args, "streaming")
        page.keyboard.press(" ")
        wait_session(page, args, "paused")
        page.request.delete(f"{args.url}/api/v1/webrtc/offer/{first}")
        wait_session(page, args, "paused", other_than=[first])
        chromium.wait_text(page, "#curtain-title", "Paused")
        chromium.shot(page, args, "-paused")
        result["paused"] = {"parameters": parameters(page, args), "button": page.inner_text("#pause")}
        page.click("#pause")
        chromium.wait_frames(page, 10)
        result["curtain_away"] = page.evaluate("() => document.getElementById('curtain').classList.contains('away')")
    print(json.dumps(result))


parser = chromium.arguments(argparse.ArgumentParser())
parser.add_argument("--pid", type=int, required=True, help="the gateway's")
main(parser.parse_args())
