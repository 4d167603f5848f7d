"""Records the page as the README shows it: an animated WebP in which a prompt is typed and the picture changes."""

import argparse
import io
import json
import time

import chromium
from PIL import Image


def recorded(page, seconds, step):
    """Pictures of the page, one every `step` seconds as far as the machine keeps up, with the time each stands."""
    begun, pictures = time.monotonic(), []
    while time.monotonic() - begun < seconds:
        taken = time.monotonic()
        picture = Image.open(io.BytesIO(page.screenshot(type="png"))).convert("RGB")
        time.sleep(max(0.0, taken + step - time.monotonic()))
        pictures.append((picture, int((time.monotonic() - taken) * 1000)))
    return pictures


def main(args):
    errors = []
    with chromium.opened(args, errors) as page:
        pictures = []
        for prompt in args.prompt:
            chromium.type_prompt(page, prompt, send=False)
            pictures += recorded(page, 1.0, args.step)
            page.keyboard.press("Enter")
            pictures += recorded(page, args.seconds, args.step)
    width = args.out_width
    small = [(picture.resize((width, picture.height * width // picture.width), Image.LANCZOS), ms) for picture, ms in pictures]
    first, *rest = [picture for picture, _ in small]
    first.save(
        args.out, save_all=True, append_images=rest, duration=[ms for _, ms in small], loop=0, quality=args.quality, method=4
    )
    print(json.dumps({"pictures": len(small), "errors": errors}))


parser = chromium.arguments(argparse.ArgumentParser())
parser.add_argument("--out", required=True)
parser.add_argument("--prompt", action="append", required=True, help="typed and sent; may be given several times")
parser.add_argument("--seconds", type=float, default=6.0, help="that are recorded after each prompt")
parser.add_argument("--step", type=float, default=0.2, help="seconds between pictures")
parser.add_argument("--out-width", type=int, default=800)
parser.add_argument("--quality", type=int, default=70)
main(parser.parse_args())
