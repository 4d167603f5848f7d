"""What the page says about what it sent, and what it shows of changes that others make over HTTP. Prints one JSON
object."""

import argparse
import json

import chromium


def main(args):
    errors = []
    result = {}
    with chromium.opened(args, errors) as page:
        def post(body):
            answer = page.request.post(f"{args.url}/api/v1/session/parameters", data=body)
            assert answer.ok, answer.text()

        chromium.wait_frames(page, 20)
        result["examples"] = page.is_visible("#examples")
        waits = ["stage0: draining", "mesh: recovering: rank 1 stopped", "mesh: loading"]
        result["leaving"] = page.evaluate("async (waits) => waits.map((await import('/assets/texts.js')).leaving)", waits)
        result["notes"] = [note.get_attribute("data-model") for note in page.query_selector_all("[data-model]") if note.is_visible()]
        page.select_option("#transition", "2")
        chromium.note_texts(page, "#sent")
        chromium.type_prompt(page, "a blue whale")
        changed = chromium.wait_text(page, "#sent", "changed")
        result["transition"] = [chromium.wait_noted(page, "changing …"), changed]
        chromium.shot(page, args, "-changed")
        page.keyboard.press("Escape")
        mesh = page.request.get(f"{args.url}/api/v1/cell").json()["mesh"]["epoch"]
        result["mesh_epoch"] = {"told": mesh, "shown": page.inner_text("#live-mesh-epoch")}
        result["cache_epoch"] = {"before": int(page.inner_text("#live-cache-epoch"))}
        page.keyboard.press("r")
        result["reset"] = chromium.wait_text(page, "#sent", "started over")
        page.wait_for_function("() => document.getElementById('live-restarts').textContent === 'once'")
        result["cache_epoch"]["after"] = int(page.inner_text("#live-cache-epoch"))
        page.select_option("#steps", label="2 – quick")
        result["steps"] = chromium.wait_text(page, "#settings-sent", "2 denoising steps")
        page.evaluate("() => document.activeElement.blur()")

        post({"base_seed": 77, "kv_cache_attention_bias": 0.5, "denoising_step_list": [1000, 400], "prompts": [{"text": "a fox"}]})
        page.wait_for_function("() => document.getElementById('seed').value === '77'")
        page.wait_for_function("() => document.querySelector('#prompts textarea').value === 'a fox'")
        result["followed"] = {"steps": page.input_value("#steps"), "bias": page.inner_text("#bias-value")}
        page.fill("#seed", "-5")
        page.keyboard.press("Escape")
        result["bad_seed"] = page.input_value("#seed")
        page.fill("#prompts textarea", "")
        page.keyboard.press("Enter")
        result["empty"] = chromium.wait_text(page, "#sent", "the prompt is empty")
        page.fill("#prompts textarea", "a fox")
        page.evaluate("() => document.activeElement.blur()")
        post({"prompts": [{"text": f"thing {n}"} for n in range(16)]})
        page.wait_for_function("() => document.querySelectorAll('#prompts textarea').length === 16")
        result["can_add"] = page.is_enabled("#add-prompt")
        post({"prompts": [{"text": "a fox"}]})
        page.wait_for_function("() => document.querySelectorAll('#prompts textarea').length === 1")
        page.focus("#seed")
        page.keyboard.type("1")
        chromium.type_prompt(page, "half a thou", send=False)
        page.focus("#seed")
        post({"base_seed": 78, "kv_cache_attention_bias": 0.6, "prompts": [{"text": "a hen"}]})
        chromium.wait_text(page, "#bias-value", "0.60")
        result["kept"] = {"seed": page.input_value("#seed"), "prompt": page.input_value("#prompts textarea")}

        page.evaluate("() => document.activeElement.blur()")
        page.keyboard.press(" ")
        chromium.wait_text(page, "#connection", "paused")
        chromium.type_prompt(page, "a heron")
        result["while_paused"] = chromium.wait_text(page, "#sent", "takes effect")
        chromium.shot(page, args, "-while-paused")

        second = page.context.new_page()
        second.goto(args.url)
        second.wait_for_function("() => document.getElementById('connection').dataset.state === 'failed'")
        result["full"] = {"text": second.inner_text("#curtain-text"), "raw": second.get_attribute("#curtain", "title")}
        chromium.shot(second, args, "-full")
    result["errors"] = errors
    print(json.dumps(result))


main(chromium.arguments(argparse.ArgumentParser()).parse_args())
