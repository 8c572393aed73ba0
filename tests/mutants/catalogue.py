"""The faults. Most are in what one function hands to another: nothing crashes, and a number lies.

Golden losses and recorded arrays are left out of the tests named here: a fault that they alone notice has no law.
"""

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

SVM = "tests/trainer/test_svm.py tests/trainer/test_evaluation_laws.py"
EVALUATION = "tests/trainer/test_evaluation_laws.py tests/trainer/test_evaluation.py"
DRAWS = "tests/trainer/test_draw_laws.py tests/trainer/test_data.py tests/model/test_draws.py"
POSES = "tests/trainer/test_poses.py"
STORED_POSES = "tests/build/test_poses.py -k pose_is or cover"
STEP = "tests/trainer/test_loop.py tests/trainer/test_draw_laws.py tests/trainer/test_step_laws.py"
RESUME = "tests/trainer/test_checkpoint.py tests/trainer/test_same_cache.py tests/trainer/test_mid_epoch.py"
MODEL = "tests/model/test_model_laws.py tests/model/test_definition.py -k not recorded"
MASKS = "tests/model/test_masking.py tests/model/test_grouping.py"
SCHEDULE = "tests/trainer/test_schedule.py"
HEADS = "tests/finetune/test_laws.py tests/model/test_definition.py"
KERNELS = "tests/kernels/test_{}.py"
CODECS = "tests/cache/test_codecs.py"
CACHE = "tests/cache/test_contract.py tests/cache/test_safety.py"
SHARDS = "tests/cache/test_counts_as_built.py"


def _of(file: str, tests: str, *faults: tuple[str, str, str] | tuple[str, str, str, str]) -> list[Mutant]:
    return [Mutant(fault, file, old, new, tests, *why) for fault, old, new, *why in faults]


MUTANTS: tuple[Mutant, ...] = (
    *_of(
        "trainer/evaluation/svm.py", SVM,
        ("C is chosen on the test split", "key=lambda i: (validation[i], -grid[i])",
         "key=lambda i: (model.accuracy(model.everything, grid[i], (x_test - mean) / scale, y_test), -grid[i])"),
        ("test features are centred by the test split", "grid[best], (x_test - mean) / scale, y_test",
         "grid[best], (x_test - x_test.mean(axis=0)) / scale, y_test"),
        ("test features are scaled by the test split", "grid[best], (x_test - mean) / scale, y_test",
         "grid[best], (x_test - mean) / ((x_test.std(axis=0) + 1e-9) * np.sqrt(x.shape[1])), y_test"),
        ("both splits are centred together", "mean, spread = x.mean(axis=0), x.std(axis=0)",
         "mean, spread = np.concatenate([x, x_test]).mean(axis=0), x.std(axis=0)",
         "none could notice: an SVM with an intercept does not see a shift of all its features"),
        ("both splits are scaled together", "mean, spread = x.mean(axis=0), x.std(axis=0)",
         "mean, spread = x.mean(axis=0), np.concatenate([x, x_test]).std(axis=0)"),
        ("cross-validation fits on all shapes", "inside, outside = np.flatnonzero(fold != k)",
         "inside, outside = np.flatnonzero(fold >= 0)"),
        ("ties of C go to the largest", "(validation[i], -grid[i])", "(validation[i], grid[i])"),
        ("folds do not depend on the seed", "rng = np.random.default_rng(seed)", "rng = np.random.default_rng(0)"),
        ("chance is read off the test split", "values, counts = np.unique(train_labels,",
         "values, counts = np.unique(test_labels,"),
        ("the reference protocol ignores its C", "model.accuracy(model.everything, c, x_test, y_test), c=c",
         "model.accuracy(model.everything, 1.0, x_test, y_test), c=c"),
    ),
    *_of(
        "trainer/evaluation/compare.py", EVALUATION,
        ("every evaluation seed scores the same points",
         "train, test = self._points(self.train, seed), self._points(self.test, seed)",
         "train, test = self._points(self.train, 0), self._points(self.test, 0)"),
        ("every evaluation seed has the same folds", "seed=seed,\n                    c=config.reference_c",
         "seed=0,\n                    c=config.reference_c"),
        ("the untrained baseline settles on the test split", "settle_batch_norms(fresh, self._points(self.train, 0)",
         "settle_batch_norms(fresh, self._points(self.test, 0)"),
        ("the untrained baseline has weights of seed 0", "teacher, seed=seed).to(device)",
         "teacher, seed=0).to(device)"),
        ("the untrained baseline is the trained model",
         "fresh = new_model(model.config, model.masking, teacher, seed=seed).to(device)", "fresh = model.to(device)"),
        ("chance is of the test split's favourite", "chance=majority_share(self.train.labels, self.test.labels)",
         "chance=majority_share(self.test.labels, self.test.labels)"),
        ("the spread is that of one seed", "spread=float(np.std(values))", "spread=float(np.std(values[:1]))"),
        ("the best seed is reported", "accuracy=float(np.mean(values))", "accuracy=float(np.max(values))"),
        ("test labels are those of training", "                    self.test.labels,\n                    protocol",
         "                    self.train.labels[: len(test)],\n                    protocol"),
    ),
    *_of(
        "trainer/evaluation/clouds.py", EVALUATION,
        ("evaluation draws the same points under every seed", "record_uniforms(np.arange(n), N, seed=seed, epoch=0",
         "record_uniforms(np.arange(n), N, seed=0, epoch=0"),
        ("drawn points are not normalised again",
         "return renormalised(np.take_along_axis(self.points, chosen[:, :, None], axis=1))",
         "return np.take_along_axis(self.points, chosen[:, :, None], axis=1)"),
    ),
    *_of(
        "trainer/evaluation/encoders.py", EVALUATION,
        ("features are taken in training mode", "model.train(False)", "model.train(True)"),
        ("settled variances are those of samples", "rows.var(0, unbiased=False)", "rows.var(0, unbiased=False) * 2"),
    ),
    *_of(
        "cli/evaluate.py", EVALUATION,
        ("the command's untrained baseline has weights of seed 0", 'get("trainer", {}).get("seed", 0))',
         'get("trainer", {}).get("sead", 0))'),
    ),
    *_of(
        "trainer/data.py", DRAWS,
        ("masks and drop paths are those of epoch 0",
         "draws=Draws.for_records(records, self._model, seed=seed, epoch=epoch)",
         "draws=Draws.for_records(records, self._model, seed=seed, epoch=0)"),
        ("masks and drop paths are those of seed 0",
         "draws=Draws.for_records(records, self._model, seed=seed, epoch=epoch)",
         "draws=Draws.for_records(records, self._model, seed=0, epoch=epoch)"),
        ("the same points in every epoch", "choose_points(records, stored, self.points, seed=seed, epoch=epoch)",
         "choose_points(records, stored, self.points, seed=seed, epoch=0)"),
        ("the same points under every seed", "choose_points(records, stored, self.points, seed=seed, epoch=epoch)",
         "choose_points(records, stored, self.points, seed=0, epoch=epoch)"),
        ("the same stretch in every epoch", "shift=config.shift, seed=seed, epoch=epoch)",
         "shift=config.shift, seed=seed, epoch=0)"),
        ("the same stretch under every seed", "shift=config.shift, seed=seed, epoch=epoch)",
         "shift=config.shift, seed=0, epoch=epoch)"),
        ("the order does not depend on the seed", "epoch_order(counts, seed=config.seed, epoch=epoch",
         "epoch_order(counts, seed=0, epoch=epoch"),
        ("the order is the same in every epoch", "epoch_order(counts, seed=config.seed, epoch=epoch",
         "epoch_order(counts, seed=config.seed, epoch=0"),
        ("the teacher's frame is the student's", "points_canonical=torch.from_numpy(canonical)",
         "points_canonical=torch.from_numpy(student)"),
        ("a rank reads what another reads", "rank=self._ranks.rank,", "rank=0,"),
    ),
    *_of(
        "trainer/data.py", POSES,
        ("poses are the same in every epoch", "choose_poses(shapes, poses, seed=config.seed, epoch=epoch)",
         "choose_poses(shapes, poses, seed=config.seed, epoch=0)"),
        ("poses are the same under every seed", "choose_poses(shapes, poses, seed=config.seed, epoch=epoch)",
         "choose_poses(shapes, poses, seed=0, epoch=epoch)"),
    ),
    *_of(
        "trainer/augment.py", DRAWS,
        ("one scale for all axes", "(high - low) * drawn[:, None, :3]", "(high - low) * drawn[:, None, :1]"),
        ("shifts go one way", "np.float32(shift) * (2 * drawn[:, None, 3:] - 1)",
         "np.float32(shift) * drawn[:, None, 3:]"),
        ("scale and shift share their numbers", "(2 * drawn[:, None, 3:] - 1)", "(2 * drawn[:, None, :3] - 1)"),
    ),
    *_of(
        "trainer/draws.py", DRAWS,
        ("drop path shares the numbers of the masks", 'stream=STREAMS["drop_path"])', 'stream=STREAMS["mask"])'),
        ("uniform numbers do not depend on the seed", "for part in (seed, epoch, stream):",
         "for part in (0, epoch, stream):"),
    ),
    *_of(
        "pipeline/poses.py", STORED_POSES,
        ("stored poses are shifted one way", "np.float32(SHIFT) * (2 * drawn[3:] - 1)",
         "np.float32(SHIFT) * drawn[3:]"),
        ("stored poses have one scale for all axes", "(high - low) * drawn[:3]", "(high - low) * drawn[:1]"),
        ("all stored poses of a shape are one", 'f"pose {pose}").random(6)', '"pose").random(6)'),
        ("stored poses are those of any shape", "shape_generator(0, id,", 'shape_generator(0, "",'),
        ("scale and shift of a stored pose share their numbers", "(2 * drawn[3:] - 1)", "(2 * drawn[:3] - 1)"),
    ),
    *_of(
        "pipeline/shard.py", "tests/build/test_quarantine_paths.py",
        ("absolute paths in reasons of quarantine", 'reason = reason.replace(f"{root}/", "")', "reason = reason"),
        ("absolute paths in sources of quarantine",
         'source = source.removeprefix(f"{root}/").removeprefix(f"{root.parent}/")', "source = str(source)"),
    ),
    *_of(
        "trainer/step.py", STEP,
        ("the 2D loss enters without its weight", "counts[1], self.config.weight_2d)", "counts[1])"),
        ("drop path is off", "return self.model.plan(part.points, frame, maps, part.draws), part.draws.drop_path",
         "return self.model.plan(part.points, frame, maps, part.draws), None"),
        ("the learning rate stays where it was", "set_learning_rate(self.optimizer, rate)", "rate = rate"),
        ("gradients of one step stay for the next", "self.optimizer.zero_grad(set_to_none=True)", "counts = counts"),
        ("a live teacher is looked up in the canonical frame",
         "maps, frame = self.teacher(part.points), part.points",
         "maps, frame = self.teacher(part.points), part.points_canonical"),
        ("a part's loss is divided by its own counts", "loss = output.normalised(counts[0], counts[1],",
         "loss = output.normalised(output.count_3d, output.count_2d,"),
        ("batch norms do not train", "self.model.train()", "self.model.eval()"),
        ("a basis weighs by the channels it has", "* self._stands_for\n", "\n"),
    ),
    *_of(
        "trainer/loop.py", STEP,
        ("the first weights are those of seed 0", "self.teacher_shape, seed=trainer.seed)",
         "self.teacher_shape, seed=0)"),
        ("the learning rate is that of the epoch's first step",
         "learning_rate(self.config, self.epoch, index, steps)", "learning_rate(self.config, self.epoch, 0, steps)"),
        ("losses of an epoch are its last step's", "[total + value for total, value in",
         "[value * steps + 0 * total for total, value in"),
    ),
    *_of(
        "trainer/loop.py", EVALUATION,
        ("the run's untrained baseline has weights of seed 0", "baselines(self.model, seed=self.config.seed,",
         "baselines(self.model, seed=0,"),
        ("an evaluation after training has one seed", "seeds=None if final else 1)", "seeds=1)"),
    ),
    *_of(
        "trainer/restore.py", RESUME,
        ("a run goes on with a cache that has grown", '{**now, "cache": cache, "teacher": teacher}',
         '{**now, "cache": header.cache, "teacher": teacher}'),
        ("a run goes on with another learning rate", '    "trainer.epochs",\n',
         '    "trainer.epochs",\n    "trainer.learning_rate",\n'),
        ("a run goes on under another seed", '    "trainer.epochs",\n', '    "trainer.epochs",\n    "trainer.seed",\n'),
    ),
    *_of(
        "trainer/losses.py", MODEL,
        ("the 3D loss has one way only", "both = forth + back", "both = forth"),
        ("hidden tokens weigh alike in the static layout", "(both.sum(1) * weight).sum()", "both.sum(1).sum()"),
        ("the 2D loss is a mean, not a sum", 'reduction="sum")', 'reduction="mean")'),
        ("the total leaves out the 2D loss", "return self.loss_3d + self.loss_2d", "return self.loss_3d"),
    ),
    *_of(
        "trainer/model.py", MODEL,
        ("3D targets are of the wrong tokens",
         "select(neighbourhoods(levels[target - 1].centres, levels[target]), hidden)",
         "select(neighbourhoods(levels[target - 1].centres, levels[target]), hidden).flip(0)"),
        ("3D targets are not relative to their centres",
         "select(neighbourhoods(levels[target - 1].centres, levels[target]), hidden)",
         "select(gather(levels[target - 1].centres, levels[target].members), hidden)"),
        ("the 3D head reads visible tokens' neighbours", "self.rec_head_3d(select(decoded, plan.hidden))",
         "self.rec_head_3d(select(decoded.flip(1), plan.hidden))"),
        ("the decoder gets no positions", "position = self.decoder_pos_embeds[stage](level.centres)",
         "position = self.decoder_pos_embeds[stage](level.centres) * 0"),
        ("the decoder's output is not normed", "return self.decoder_norm(x)", "return x"),
        ("hidden tokens are zeros in the decoder", "spread(encoded[-1], plan.tokens[-1], self.mask_token)",
         "spread(encoded[-1], plan.tokens[-1], self.mask_token * 0)"),
        ("the evaluation feature is a mean", "[-1].amax(1)", "[-1].mean(1)"),
        ("2D counts are of points, not of numbers", "values = seen * plan.target_2d.shape[1]", "values = seen"),
        ("the drop path of the decoder is the encoder's first",
         "None if drop_path is None else drop_path[:, split:])",
         "None if drop_path is None else drop_path[:, :-split])"),
    ),
    *_of(
        "trainer/encoder.py", MODEL,
        ("positions are those of other tokens",
         "self.encoder_pos_embeds[i](pad(select(level.centres, here.rows), here))",
         "self.encoder_pos_embeds[i](pad(select(level.centres, here.rows), here).flip(1))"),
        ("padded tokens are attended to", "attend = here.valid[:, None, None, :] if here.uneven else None",
         "attend = None"),
        ("the next level gets normed tokens",
         'below = encoded[-1] if self.config.merge_input == "normed" else x', "below = encoded[-1]"),
        ("every level skips by the first level's numbers", "            first = last\n",
         "            first = 0 * last\n"),
    ),
    *_of(
        "trainer/blocks.py", MODEL,
        ("positions are added to the first block only",
         "x = block(x + position, attend,", "x = block(x + position * (i == 0), attend,"),
        ("kept branches are not scaled up", ".to(branch.dtype) / keep", ".to(branch.dtype)"),
        ("attention is scaled as with one head", "F.scaled_dot_product_attention(q, k, v, attn_mask=attend)",
         "F.scaled_dot_product_attention(q, k, v, attn_mask=attend, scale=D**-0.5)"),
        ("a block is not pre-norm in its MLP", "self.mlp(self.norm2(x))", "self.mlp(x)"),
        ("drop path rises from half its largest", "largest * i / max(total - 1, 1)",
         "largest * (i + total) / (2 * total)"),
    ),
    *_of(
        "trainer/embedding.py", "tests/model/test_embedding.py",
        ("the group's maximum goes to the other half",
         "group_half, own_half = joint.weight[:, :, 0].split(own.shape[2], dim=1)",
         "own_half, group_half = joint.weight[:, :, 0].split(own.shape[2], dim=1)"),
    ),
    *_of(
        "trainer/decoder.py", "tests/model/test_interpolation.py tests/model/test_definition.py",
        ("distances are not squared in the weights", "inverse = 1 / (nearest + EPSILON)",
         "inverse = 1 / (nearest.clamp(min=0).sqrt() + EPSILON)"),
        ("fine and coarse tokens change places", "both = torch.cat((fine, raised.to(fine.dtype)), dim=-1)",
         "both = torch.cat((raised.to(fine.dtype), fine), dim=-1)"),
    ),
    *_of(
        "trainer/masking.py", MASKS,
        ("the least salient stay visible", "descending=True, stable=True)", "descending=False, stable=True)"),
        ("the temperature multiplies", "return saliency / config.temperature", "return saliency * config.temperature"),
        ("masks pass down by position", "where = level.members.where(result[-1][:, :, None], G)",
         "where = (level.members % 2).where(result[-1][:, :, None], G)"),
    ),
    *_of(
        "trainer/schedule.py", SCHEDULE,
        ("the warm-up starts at zero",
         "return config.warmup_learning_rate + (base - config.warmup_learning_rate) * time / warm",
         "return base * time / warm"),
        ("the cosine counts the warm-up", "(time - warm) / (config.horizon - warm)", "time / config.horizon"),
        ("the cosine ends at the top", "return bottom + 0.5 * (top - bottom) * (1 + math.cos(math.pi * fraction))",
         "return bottom + 0.5 * (top - bottom) * (1 - math.cos(math.pi * fraction))"),
        ("the reference's rates come an epoch early", "late = max(epoch - 1, 0)", "late = epoch"),
    ),
    *_of(
        "trainer/optim.py", "tests/trainer/test_optim.py tests/trainer/test_step_laws.py",
        ("weight decay reaches all parameters", '"weight_decay": 0.0}', '"weight_decay": config.weight_decay}'),
        ("betas are torch's own", "betas=config.betas,", "betas=(0.9, 0.99),"),
    ),
    *_of(
        "trainer/classifier.py", HEADS,
        ("label smoothing spreads over the label too",
         "label_smoothing=smoothing * classes / (classes - 1))", "label_smoothing=smoothing)"),
        ("the pooled mean is a sum", "mean, largest = tokens.mean(1), tokens.max(1).values",
         "mean, largest = tokens.sum(1), tokens.max(1).values"),
        ("mean and maximum change places", "torch.cat((mean, largest), dim=1)", "torch.cat((largest, mean), dim=1)"),
    ),
    *_of(
        "trainer/segmentation.py", HEADS,
        ("levels change places in the head", "for level, weight in zip(levels, of_levels, strict=True)",
         "for level, weight in zip(levels, of_levels[::-1], strict=True)"),
        ("the shape's feature is its maximum only", "x.max(1).values + x.mean(1) for x in levels",
         "x.max(1).values for x in levels"),
    ),
    *_of(
        "trainer/radius.py", "tests/finetune/test_radius.py",
        ("a neighbour at the radius is seen", "< radius  # [B, G, G]", "<= radius  # [B, G, G]"),
    ),
    *_of(
        "cuda/twins/gather.py", KERNELS.format("gather") + " tests/kernels/test_many_rows.py",
        ("a 32-bit row number in gather", "            n = idx[b, p]\n            if n < 0 or n >= values.shape[1]:",
         "            n = numba.int32(idx[b, p])\n            if n < 0 or n >= values.shape[1]:"),
    ),
    *_of(
        "cuda/kernels/gather.cu", "tests/kernels/test_many_rows.py",
        ("a 32-bit row number in the kernel of gather", "if (row >= (long long)B * N) return;",
         "if (row >= B * N) return;"),
    ),
    *_of(
        "cuda/kernels/knn.cu", "tests/kernels/test_many_rows.py",
        ("a 32-bit cloud number in the kernel of kNN", "const long long b = blockIdx.x / blocks;",
         "const int b = blockIdx.x / blocks;"),
    ),
    *_of(
        "cuda/twins/fps.py", KERNELS.format("fps"),
        ("ties of sampling go to the highest index", "bits[i] == highest and source[b, i] < lowest_idx",
         "bits[i] == highest"),
        ("the near-origin rule takes the norm, not its square", "np.float64(norm2) <= 1e-3",
         "np.float64(norm2) <= 1e-6"),
    ),
    *_of(
        "cuda/twins/knn.py", KERNELS.format("knn"),
        ("boxes at the limit are passed over", "waiting += gap_bits[box] <= limit", "waiting += gap_bits[box] < limit"),
    ),
    *_of(
        "cuda/twins/chamfer.py", KERNELS.format("chamfer"),
        ("the gradient has its own term only", "grad[m, p, axis] += g * (a[m, p, axis] - b[m, q, axis])",
         "grad[m, p, axis] += 0 * g"),
    ),
    *_of(
        "cuda/twins/project.py", KERNELS.format("project"),
        ("the far edge is a pixel too far", "/ np.float32(S - PLANE_MARGIN)", "/ np.float32(S - PLANE_MARGIN + 1)"),
    ),
    *_of(
        "teacher_cache/codecs.py", CODECS,
        ("empty pixels of 8-bit depth are not 0.5", "DEPTH_STEPS = 254", "DEPTH_STEPS = 255"),
        ("int8 codes are cut, not rounded", "np.rint(values / divisor)", "np.trunc(values / divisor)"),
    ),
    *_of(
        "teacher_cache/verify.py", CACHE + " " + SHARDS,
        ("verify is blind to additional json files", "        if name not in known\n",
         '        if name not in known and not name.endswith(".json")\n'),
        ("verify takes a file's size for its content", "    if digest != expected.sha256:",
         "    if digest and known is None and digest != expected.sha256:"),
    ),
    *_of(
        "teacher_cache/writer.py", SHARDS,
        ("a shard with a file cut short counts as built", "        if size != file.bytes:", "        if size is None:"),
    ),
    *_of(
        "teacher_cache/shuffle.py", "tests/cache/test_shuffle.py",
        ("the order within a window is that of the cache", "pieces.append(records[_order(stream, records.size)])",
         "pieces.append(records)"),
        ("epochs and seeds that add up alike are one", "np.random.SeedSequence([seed, epoch])",
         "np.random.SeedSequence([seed + epoch])"),
    ),
    *_of(
        "cli/study/plan.py", "tests/study/test_plan_laws.py",
        ("every run of a study has the seed 0", 'f"trainer.seed={seed}"]', '"trainer.seed=0"]'),
        ("runs of all seeds share a folder", 'arm.name / f"seed-{seed}"', 'arm.name / "seed"'),
    ),
)  # fmt: skip
