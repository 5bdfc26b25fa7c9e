"""Multi-Concept Prompt Learning on a page: two words from four pictures and one sentence.

Sections and equations are those of the paper. Everything else of the project (configurations,
runs, resuming, many runs at once) is left out: `main.py` has it. About a minute on two cores.

    python scripts/minimal.py --steps 250 --out minimal.png
"""

import argparse

import torch

from ldm.concepts.contrastive import PromptContrast
from ldm.concepts.masks import AttentionMask
from ldm.concepts.objective import TrainStep
from ldm.concepts.recorder import WordAttention, named_positions
from ldm.data.playroom import PlayroomConcepts
from ldm.data.steps import StepKey
from ldm.evaluation.localisation import binary_mask, word_ious, word_maps
from ldm.inference import load_model
from ldm.modules.attention_control import controlling
from ldm.visual import save_png, word_panel

parser = argparse.ArgumentParser(description="Learn two words with AttnMask and PromptCL.")
parser.add_argument("--steps", type=int, default=250, help="training steps")
parser.add_argument("--out", default="minimal.png", help="the picture to write")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def main(arguments=None):
    """Learn the words; print how well they find their objects, before and after."""
    options = parser.parse_args(arguments)
    torch.manual_seed(0)

    # A frozen text-to-image model, and four pictures of a bear on a skateboard with one sentence:
    # "a [brown] <bear:toy> on a [rolling] <skateboard:toy> ..." <word:what it starts from>.
    model = load_model(device=options.device)
    data = PlayroomConcepts("bear-skateboard")
    model.learn(data.words)  # only the words' embeddings v can change (sec. 3.2)
    words, encoder = model.embedding_manager, model.cond_stage_model
    optimizer = torch.optim.AdamW(words.embedding_parameters(), lr=0.01)

    mask = AttentionMask(threshold=0.5, average="running")  # sec. 3.4, eq. 2
    contrast = PromptContrast(temperature=0.3, weight=0.00075)  # eqs. 3-6, Bind adj. included

    # Every picture is encoded once: z_0.
    pictures = torch.stack([torch.from_numpy(array) for _, _, array in data.images()])
    pictures = pictures.movedim(-1, 1).to(options.device)
    latents = model.encode_images(pictures)
    sentences = [data.sentence_of(i).caption for i in range(len(pictures))]
    truths = [data.masks(i) for i in range(len(pictures))]
    before = word_ious(word_maps(model, latents, sentences), truths)

    for number in range(options.steps):
        # Four pictures, each under a caption such as "a photo of the cool brown <bear> on ...".
        batch = [data[StepKey(number, slot)] for slot in range(4)]
        captions, chosen = [row["caption"] for row in batch], [row["image_id"] for row in batch]

        # Noise them to a random timestep: z_t.
        z, noise = latents[chosen], torch.randn_like(latents[chosen])
        t = torch.randint(model.num_timesteps, (len(z),), device=z.device)
        z_t = model.q_sample(z, t, noise)

        # Encode the captions with the words in them, and denoise while watching where words look.
        tokens = encoder.tokenize(captions, words.words)
        context = encoder.encode_tokens(tokens.ids.to(z.device), words)
        attention = WordAttention(named_positions(tokens), model.mask_resolution)
        with controlling(model.model.diffusion_model, attention):
            prediction = model.apply_model(z_t, t, context)

        # L = || M * (target - prediction) ||^2 + gamma * L_PromptCL (eqs. 2 and 7). The paper's
        # target is eps; this network predicts v, a mixture of eps and z_0.
        target = model.schedule.target(model.parameterization, z, noise, t)
        step = TrainStep(prediction, target, t, model.schedule, context, captions, tokens,
                         attention, words, image_id=torch.tensor(chosen))  # fmt: skip
        difference = mask(step) * (target - prediction)
        loss = difference.square().mean() + contrast.weight * contrast(step).loss.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number % 50 == 0:
            print(f"step {number:4d}  loss {loss.item():.4f}", flush=True)

    maps = word_maps(model, latents, sentences)
    for word, after in word_ious(maps, truths).items():
        print(f"{word}: IoU with the true mask {before[word]:.2f} before, {after:.2f} after")
    masks = {word: binary_mask(each).float() for word, each in maps.items()}
    save_png(options.out, word_panel(pictures, maps, masks, list(map(str, sentences))))
    print(f"what each word looks at: {options.out}")


if __name__ == "__main__":
    main()
