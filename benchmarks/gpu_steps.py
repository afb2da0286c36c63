"""Steps of a published pair's shape on one GPU, random weights: milliseconds, floor, kernels, share of the host.

Usage: gpu_steps.py OUT.jsonl [pair] [seconds] [cells] [weights]. Acceptance is by dice. One JSON object a line, see
FIELDS. ``cells``: of plain,b16,b16short,b8,tree,mtp,prefill,bits,long; by default plain, b16, prefill, bits and b8.
``weights``: bf16, or the layers' matrices in codes as gpu_linear.py has them: fp8, int4, awq.
"""

import gc
import json
import sys
import time
import traceback
from statistics import median

import torch
from gpu_linear import drawn_alone
from transformers import AutoConfig

from flashdraft.bench.published import pair_configs
from flashdraft.checkpoint.kept_codes import small_shared
from flashdraft.cuda.round_drafts import TreeDraft
from flashdraft.cuda.rounds import SOURCE
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.models.base import build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.mlp import Experts, ExpertsInCodes
from flashdraft.models.mtp import MTPConfig, MTPModel
from flashdraft.ops.quantized import QuantizedLinear, QuantizedWeight
from flashdraft.ops.recorded import Recorded
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.mtp import MTPDrafter
from flashdraft.spec_decode.simulated import SimulatedAcceptance

FIELDS = "system pair method requests step_ms output_tokens_per_s floor_ms copy_tb_s kernels host_share"
PROMPT, MAX_TOKENS, LONG = 256, 900, 128 * 1024
SURE = 6.0  # times larger logits, of which the second likeliest token's is about 2 below the likeliest's


def seconds_of(work, repeats=8):
    """The median of ``repeats`` runs by the device's clock."""
    for _ in range(2):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def ceilings():
    """Copy rate in bytes a second (read and written) and bf16 matrix rate in FLOP a second."""
    a = torch.randn(2**30, dtype=torch.bfloat16, device="cuda")
    b = torch.empty_like(a)
    copy = 2 * a.nbytes / seconds_of(lambda: b.copy_(a))
    x, y = torch.randn(2, 8192, 8192, dtype=torch.bfloat16, device="cuda")
    return copy, 2 * 8192**3 / seconds_of(lambda: x @ y)


def randomly(model, device="cuda"):
    """Random weights on the device, norms as trained ones are about."""
    model = model.to(torch.bfloat16).to_empty(device=device)
    for name, one in model.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                owner = model.get_submodule(name.rpartition(".")[0])
                one.fill_(0.0 if "ZeroCentered" in type(owner).__name__ else 1.0)
            elif name.endswith("A_log"):
                one.uniform_(0.0, 2.0)
            elif name.endswith("dt_bias"):
                one.uniform_(-4.0, 0.0)
            else:
                one.normal_(0.0, 0.02)
    return model.eval().requires_grad_(False)


def with_codes(model, kind, device="cuda"):
    """The layers' matrices in random codes on ``device``, but what quantized checkpoints leave in floats."""
    left, small = ("in_proj_a", "in_proj_b", ".gate", "shared_expert_gate"), small_shared(model)
    for name, module in list(model.named_modules()):
        if module in small:
            continue
        if type(module) is torch.nn.Linear and ".layers." in name and not name.endswith(left):
            weight = drawn_alone(module.weight, kind, device, for_linear=True)
            model.set_submodule(name, QuantizedLinear(weight, module.bias))
        elif type(module) is Experts:
            both = module.gate_up_proj.flatten(0, 1), module.down_proj.flatten(0, 1)
            codes = (drawn_alone(one, kind, device) for one in both)
            model.set_submodule(name, ExpertsInCodes(len(module.down_proj), *codes))
    return model


def code_bytes(model, kind):
    """Bytes of the weights in codes that modules of ``kind`` hold."""
    held = (value for one in model.modules() if isinstance(one, kind) for value in vars(one).values())
    return sum(value.nbytes for value in held if isinstance(value, QuantizedWeight))


def rates(length, block):
    """Conditional chances: so many tokens always, one now and then, none beyond, as vLLM's synthetic acceptance."""
    whole = int(length - 1)
    return [1.0] * whole + [length - 1 - whole] + [0.0] * (block - 2 - whole)


def along_the_deepest(draft, wanted, most, given):
    """As TreeDraft.followed, but the first ``given`` [rows] tokens of the deepest path are accepted."""
    trees = draft.trees
    depth, place = trees.depths.max(1)
    accepted = torch.minimum(torch.minimum(given.clamp(min=0), depth), most)
    own = trees.paths.take_along_dim(place[:, None, None], 1)[:, 0, : draft.block].long()
    number = torch.arange(own.shape[1], device=own.device)
    path = torch.where(number <= accepted[:, None], own, number)
    last = path.take_along_dim(accepted[:, None], 1)
    return accepted, wanted.take_along_dim(last, 1)[:, 0], path


def configs_of(pair):
    """(transformers config, drafter's config or None)."""
    if pair == "35b-a3b":  # the values that transformers has for the published one
        return AutoConfig.for_model("qwen3_5_moe_text"), None
    return pair_configs(pair)


class Bench:
    """A pair on the device."""

    def __init__(self, pair, out, limit, kind):
        torch.manual_seed(0)
        self.pair, self.out, self.limit, self.born, self.kind = pair, out, limit, time.time(), kind
        target_config, draft_config = configs_of(pair)
        target_config.max_position_embeddings = LONG
        with torch.device("meta"):
            target = build_target(target_config)
            network = DFlashModel(draft_config) if draft_config else None
        self.target = randomly(target if kind == "bf16" else with_codes(target, kind))
        self.drafter = DFlashDrafter(randomly(network), self.target) if network else None
        self.vocab = target_config.vocab_size
        self.copy, self.flops = ceilings()
        head = self.target.head_weight().nbytes
        self.weights = sum(p.nbytes for p in self.target.parameters()) - (
            0 if target_config.tie_word_embeddings else head
        )
        self.weights += code_bytes(self.target, (QuantizedLinear, ExpertsInCodes))
        self.draft_weights = (
            sum(p.nbytes for p in self.drafter.model.parameters()) if self.drafter else 0
        ) + head
        self.experts = sum(p.nbytes for name, p in self.target.named_parameters() if ".experts." in name)
        self.experts += code_bytes(self.target, ExpertsInCodes)
        self.read_share = (
            (target_config.num_experts_per_tok / target_config.num_experts) if self.experts else 0.0
        )
        self.say(
            "loaded", f"copy {self.copy / 1e12:.2f} TB/s, {self.flops / 1e12:.0f} TFLOP/s", self.memory()
        )
        self.replayed = []
        self._watch()

    def say(self, *what):
        print(f"[{time.time() - self.born:6.1f}]", *what, flush=True)

    def left(self):
        return self.limit - (time.time() - self.born)

    def memory(self):
        free, total = torch.cuda.mem_get_info()
        return f"allocated {torch.cuda.memory_allocated() / 1e9:.1f} GB, used {(total - free) / 1e9:.1f}"

    def _watch(self):
        replayed, call = self.replayed, Recorded.__call__

        def watched(recorded, key, work, inputs):
            result = call(recorded, key, work, inputs)
            if recorded._found[key] is not None:
                replayed.append((recorded, recorded._found[key]))
            return result

        Recorded.__call__ = watched

    def prompts(self, count, length=PROMPT):
        gen = torch.Generator().manual_seed(count)
        return [torch.randint(0, self.vocab - 8, (length,), generator=gen).tolist() for _ in range(count)]

    def engine(self, running, simulated=None, with_drafter=True, tokens=PROMPT + MAX_TOKENS + 32, **config):
        gc.collect()
        torch.cuda.empty_cache()
        config = EngineConfig(
            max_running=running, prefix_caching=False, num_pages=-(-running * tokens // 16), **config
        )
        drafter = self.drafter if with_drafter else None
        return Engine(self.target, drafter, config, (), None, 1, simulated=simulated)

    def row(self, method, requests, **values):
        row = {
            "system": "flashdraft", "pair": self.pair.replace("qwen3.5-", ""), "weights": self.kind, "method": method,
            "requests": requests, **values, "copy_tb_s": round(self.copy / 1e12, 3),
            "provenance": collect_provenance("cuda"),
        }  # fmt: skip
        with open(self.out, "a") as file:
            file.write(json.dumps(row) + "\n")
        shown = {key: value for key, value in row.items() if key != "provenance"}
        self.say(json.dumps(shown))

    def floor_ms(self, rows, width, drafts, keys=0):
        """The larger of bytes over the copy rate and of FLOP over the matrix rate, of a round.

        ``keys``: bytes of keys and values that it reads.
        """
        read = self.experts * (
            1 - (1 - self.read_share) ** (rows * width)
        )  # of experts, those that are chosen
        size = self.weights - self.experts + read + (self.draft_weights if drafts else 0) + keys
        used = self.weights - self.experts * (1 - self.read_share) + (self.draft_weights if drafts else 0)
        flops = rows * width * used
        return 1e3 * max(size / self.copy, flops / self.flops)

    def steps(self, method, running, block, acceptance=None, length=PROMPT, count=12, tree=0):
        """Steps in which all decode: the median of three windows of ``count`` steps.

        ``tree``: tokens of trees in place of the chains.
        """
        simulated = SimulatedAcceptance(rates(acceptance, block)) if acceptance else None
        engine = self.engine(running, simulated, block > 1, tokens=length + MAX_TOKENS + 32)
        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
        for idx, ids in enumerate(self.prompts(running, length)):
            engine.add_request(str(idx), ids, params, block)
            engine.requests[str(idx)].tree_size = tree
        while any(request.is_prefilling for request in engine.requests.values()):
            engine.step()
        for _ in range(4):
            engine.step()
        # Every step waits for the round before it: the host is one behind.
        windows = []
        for _ in range(3):
            tokens, started = 0, time.perf_counter()
            for _ in range(count):
                del self.replayed[:]
                tokens += sum(len(one.token_ids) for one in engine.step())
            windows.append(((time.perf_counter() - started) / count, tokens / count))
        step, tokens = sorted(windows)[1]
        torch.cuda.synchronize()
        replays = self.replays(engine, step)
        shapes = self.target.kv_shapes() if length > PROMPT else []
        keys = running * length * sum(4 * one.kv_heads * one.head_dim for one in shapes)
        self.row(
            method, running, step_ms=round(1e3 * step, 2), output_tokens_per_s=round(tokens / step, 1),
            floor_ms=round(self.floor_ms(running, max(block, tree), block > 1, keys), 2), kernels=self.kernels(engine),
            **replays, memory=self.memory(), windows_ms=[round(1e3 * one, 2) for one, _ in windows],
        )  # fmt: skip

    def trees(self, running, size, acceptance=7.93, block=16):
        """Trees of ``size`` tokens of whole blocks; of the deepest path as much is accepted as the dice say."""
        # Trained drafters are sure of most tokens; of distributions that are flat a tree is one token deep.
        norm = self.drafter.model.norm.weight
        with torch.no_grad():
            norm.fill_(SURE)
        followed, TreeDraft.followed = TreeDraft.followed, along_the_deepest
        try:
            self.steps(f"tree{size}@{acceptance}", running, block, acceptance, tree=size)
        finally:
            TreeDraft.followed = followed
            with torch.no_grad():
                norm.fill_(1.0)

    def mtp(self, running, acceptance=7.14, block=16):
        """The card's MTP: its head drafts 15 tokens, one after the other."""
        if not isinstance(self.drafter, MTPDrafter):
            with torch.device("meta"):
                network = MTPModel(MTPConfig(self.target.config, block))
            network.rotary = self.target.rotary
            self.drafter = MTPDrafter(randomly(network), self.target)
            head = self.target.head_weight().nbytes
            layer = sum(p.nbytes for p in network.parameters())
            self.draft_weights = (block - 1) * (layer + head)
        self.steps(f"mtp@{acceptance}", running, block, acceptance, count=6)

    def replays(self, engine, step):
        """Milliseconds of one step's recordings back to back, every time from where they are told they stand.

        ``step`` in seconds. Rounds would go on from where the one before ended; what else is recorded is told with
        each call. The host's share is of rounds alone: other steps launch work between their recordings.
        """
        if not self.replayed:
            return {}
        rounds = engine.runner.rounds and engine.runner.rounds._recorded
        with torch.inference_mode():
            for recorded, recording in self.replayed:
                if recorded is rounds:
                    recording.inputs[0][:, SOURCE] = -1
        alone = seconds_of(lambda: [recording.graph.replay() for _, recording in self.replayed], 5)
        told = {"replay_ms": round(1e3 * alone, 2)}
        if all(recorded is rounds for recorded, _ in self.replayed):
            told["host_share"] = round(1 - alone / step, 3)
        return told

    def kernels(self, engine):
        """Kernels of one step, by the profiler; the longest are told."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as prof:
            engine.step()
            torch.cuda.synchronize()
        rows = {}
        for event in prof.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                count, spent = rows.get(event.name, (0, 0.0))
                rows[event.name] = (count + 1, spent + event.time_range.elapsed_us())
        for name, (count, spent) in sorted(rows.items(), key=lambda item: -item[1][1])[:9]:
            self.say("   ", f"{spent / 1e3:8.3f} ms  {count:5d} x  {name[:90]}")
        return sum(count for count, _ in rows.values())

    def prefill(self, running, length):
        engine = self.engine(running, None, False, tokens=length + 32, max_step_tokens=8192)
        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        times = []
        for turn in range(3):
            for idx, ids in enumerate(self.prompts(running, length)):
                engine.add_request(f"{turn}-{idx}", ids, params, 1)
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in engine.run():
                pass
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        flops = running * length * (self.weights - self.target.head_weight().nbytes)
        self.row(
            "prefill", running, step_ms=round(1e3 * min(times), 1), tokens=running * length,
            output_tokens_per_s=round(running * length / min(times)), floor_ms=round(1e3 * flops / self.flops, 1),
        )  # fmt: skip

    def bits(self, tokens=40, count=20):
        """Real verification of random drafts: answers of blocks against plain decoding alone."""
        from flashdraft.bench.closed_loop import answer_all

        asked = self.prompts(count, 64)
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)

        def answers(running, block):
            engine = self.engine(running, None, block > 1, tokens=64 + tokens + 32)
            return [one.token_ids for one in answer_all(engine, asked, params, block, running)]

        alone = answers(1, 1)
        for running in (1, 8):
            for block in (1, 8, 16):
                if (running, block) == (1, 1):
                    continue
                if self.left() < 15:
                    return
                found = answers(running, block)
                first = [
                    next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), None)
                    for x, y in zip(alone, found, strict=True)
                ]
                self.row(f"bits-b{block}", running, same=sum(x == y for x, y in zip(alone, found, strict=True)),
                         of=len(asked), first_difference=first, distinct=[len(set(x)) for x in found])  # fmt: skip


def main():
    out = sys.argv[1]
    pair = sys.argv[2] if len(sys.argv) > 2 else "qwen3.5-27b"
    limit = float(sys.argv[3]) if len(sys.argv) > 3 else 400.0
    cells = sys.argv[4].split(",") if len(sys.argv) > 4 else ["plain", "b16", "prefill", "bits", "b8"]
    bench = Bench(pair, out, limit, sys.argv[5] if len(sys.argv) > 5 else "bf16")
    jobs = {
        "plain": [lambda n=n: bench.steps("plain", n, 1) for n in (1, 8, 32, 16)],
        "b16": [lambda n=n, a=a: bench.steps(f"b16@{a}", n, 16, a) for n in (1, 8, 32, 16) for a in (7.93,)],
        "b16short": [lambda n=n: bench.steps("b16@5.47", n, 16, 5.47) for n in (1, 8, 32, 16)],
        "tree": [lambda n=n, size=size: bench.trees(n, size) for size in (32, 16) for n in (1, 2, 4)],
        "mtp": [lambda n=n: bench.mtp(n) for n in (1, 8, 16, 32)],
        "long": [lambda: bench.steps("plain@128k", 1, 1, length=LONG - MAX_TOKENS)],
        "b8": [lambda n=n: bench.steps("b8@5.90", n, 8, 5.90) for n in (1, 8, 32, 16)],
        "prefill": [lambda: bench.prefill(8, 1024), lambda: bench.prefill(1, 1024)],
        "bits": [bench.bits],
    }
    for cell in cells:
        for job in jobs[cell]:
            if bench.left() < 15:
                bench.say("no time for", cell)
                break
            try:
                job()
            except Exception as error:
                traceback.print_exc()
                bench.say("failed", cell, repr(error)[:500])


if __name__ == "__main__":
    main()
