"""The prompts that the model offers: by keyboard alone from the prompt box to one of them. Prints one JSON object."""

import argparse
import json

import chromium

FOCUSED = "() => document.activeElement.textContent"
COLOURS = "() => { const style = getComputedStyle(document.querySelector('#examples button')); return [style.color, style.backgroundColor]; }"


def main(args):
    errors = []
    result = {}
    with chromium.opened(args, errors) as page:
        cell = page.request.get(f"{args.url}/api/v1/cell").json()
        chromium.wait_frames(page, 20)
        result["told"] = cell["model"]["examples"]
        result["shown"] = page.locator("#examples button").all_inner_texts()
        result["begins_with"] = page.input_value("#prompts textarea")
        result["sent_first"] = page.request.get(f"{args.url}/api/v1/session/parameters").json()["parameters"]["prompts"]
        page.select_option("#transition", "2")
        page.focus("#prompts textarea")
        # From the box over the first example to the second.
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        result["reached"] = page.evaluate(FOCUSED)
        chromium.shot(page, args, "-examples")
        page.keyboard.press("Enter")
        result["sent"] = chromium.wait_text(page, "#sent", "changed")
        result["box"] = page.input_value("#prompts textarea")
        result["holds"] = page.request.get(f"{args.url}/api/v1/session/parameters").json()["parameters"]["prompts"]
        colours = []
        for scheme in ["light", "dark"]:
            page.emulate_media(color_scheme=scheme)
            colours.append(page.evaluate(COLOURS))
            chromium.shot(page, args, f"-examples-{scheme}")
        result["colours"] = colours
    result["errors"] = errors
    print(json.dumps(result))


main(chromium.arguments(argparse.ArgumentParser()).parse_args())
