// All verbs against each other: random programs of them against a model that knows which domains, checkpoints and files
// there are. A program is a list of bursts; the verbs of a burst are begun without waiting for each other. A verb alone
// must do what the model says; one in company may also fail because of what the others do, and then only with the code
// that says so. After each burst domains, names and states agree with the model and every frame is accounted for; the
// guests (keeper.ts) check all of their own memory all the time.
//
// ZAZEN_MODEL_RUNS: programs on each host (default 14); ZAZEN_TEST_SEED: which.

import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { ZazenError } from '../src/base/errors.ts';
import { Host } from '../src/host/index.ts';
import type { Checkpoint, Domain } from '../src/host/index.ts';
import { bareMetalImage } from './bare-metal.ts';
import { until } from './waiting.ts';
import { keeper, keeperRound } from './keeper.ts';

const RUNS = Number(process.env['ZAZEN_MODEL_RUNS'] ?? 14);
const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? Date.now() % 2 ** 31);
/** 32-bit and 64-bit addresses. */
const SIZES = ['512MiB', '8GiB'] as const;
const AUDITED_BYTES_MAX = 2 ** 30;
const KEPT_PAGES = 100;
const NAMES = ['a', 'b', 'c'];
const FILES = ['x', 'y'];

const folder = mkdtempSync(join(tmpdir(), 'zazen-model-'));
after(() => rmSync(folder, { recursive: true }));
const kernel = join(folder, 'kernel');
writeFileSync(kernel, bareMetalImage({ code: keeper(KEPT_PAGES) }));

// ---- programs

const VERBS = [
  'create', 'pause', 'unpause', 'suspend', 'resume', 'checkpoint', 'rollback', 'fork', 'save', 'saveDomain', 'restore', 'destroy', 'drop',
] as const;
type Verb = (typeof VERBS)[number];

/** The numbers choose among what is there when the verb is begun. */
interface Step {
  readonly verb: Verb;
  readonly target: number;
  readonly other: number;
  readonly name: string | undefined;
  readonly file: string;
  /** Of create, fork and restore: paused; of restore: lazy; of save and restore: aborted soon after. */
  readonly flags: readonly [isPaused: boolean, isLazy: boolean, isAborted: boolean];
  /** What the host's thread does before the next step: nothing, other promises, its other work. */
  readonly wait: 'none' | 'promises' | 'turn';
}

const anyStep: fc.Arbitrary<Step> = fc.record({
  verb: fc.constantFrom(...VERBS), target: fc.nat(50), other: fc.nat(50),
  name: fc.option(fc.constantFrom(...NAMES), { nil: undefined, freq: 2 }), file: fc.constantFrom(...FILES),
  flags: fc.tuple(fc.boolean(), fc.boolean(), fc.nat(7).map(n => n === 0)),
  wait: fc.constantFrom('none', 'promises', 'turn'),
});
/** Without a domain and a checkpoint there is little to do. */
const BEGINNING = (['create', 'checkpoint'] as const).map((verb): Step[] =>
  [{ verb, target: 0, other: 0, name: undefined, file: 'x', flags: [false, false, false], wait: 'none' }]);
const anyBurst = fc.oneof(anyStep.map(one => [one]), fc.array(anyStep, { minLength: 2, maxLength: 7 }));
const anyProgram = fc.array(anyBurst, { minLength: 4, maxLength: 14 });

// ---- model

interface ModelDomain {
  readonly domain: Domain;
  readonly family: number;
  /** What it may be after a burst with both; one of them otherwise. */
  states: Set<'running' | 'paused'>;
  /** The same of whether it is suspended, beside. */
  suspended: Set<boolean>;
  isGone: boolean;
}
interface ModelCheckpoint {
  readonly checkpoint: Checkpoint;
  readonly family: number;
  /** Known when it was taken of a domain that was paused. */
  readonly retired: number | undefined;
  isGone: boolean;
}

type Outcome = { readonly value: unknown } | { readonly code: string };
/** A verb under way. */
interface Begun {
  readonly promise: Promise<unknown>;
  /** Codes with which it may fail; 'ok' if it may succeed. */
  readonly allowed: ReadonlySet<string>;
  /** What follows for the model if it succeeded. */
  follows?(value: unknown): void;
}

const outcomeOf = (error: unknown): string =>
  error instanceof ZazenError ? error.code : error === ABORTED ? 'aborted' : String(error);
const ABORTED = new Error('aborted');

class System {
  readonly host: Host;
  readonly directory = mkdtempSync(join(folder, 'run-'));
  readonly #domains: ModelDomain[] = [];
  readonly #checkpoints: ModelCheckpoint[] = [];
  #families = 0;
  counts = { ok: 0, failed: 0 };

  constructor(host: Host) {
    this.host = host;
  }

  /** Begins a burst's steps and looks at what has become of them. */
  async run(steps: readonly Step[]): Promise<void> {
    const burst = new Burst(this.#domains, this.#checkpoints, this.directory, steps);
    const begun: { readonly step: Step; readonly how: Begun; readonly outcome: Promise<Outcome> }[] = [];
    for (const one of steps) {
      const how = this.#begin(one, burst);
      if (how === undefined) continue;
      const outcome = how.promise.then(value => ({ value }), (error: unknown) => ({ code: outcomeOf(error) }));
      begun.push({ step: one, how, outcome });
      if (one.wait === 'promises') await Promise.resolve();
      if (one.wait === 'turn') await new Promise(setImmediate);
    }
    for (const { step: { verb }, how, outcome } of begun) {
      const result = await outcome;
      const said = 'code' in result ? result.code : 'ok';
      assert.ok(how.allowed.has(said), `${verb}: ${said}, and not ${[...how.allowed].join(' or ')}`);
      this.counts[said === 'ok' ? 'ok' : 'failed']++;
      if ('value' in result) how.follows?.(result.value);
    }
    await this.check();
  }

  async check(): Promise<void> {
    const live = this.#domains.filter(({ isGone }) => !isGone);
    const ids = live.map(({ domain }) => domain.id).toSorted((a, b) => a - b);
    assert.deepEqual(this.host.domains().map(({ id }) => id), ids);
    assert.equal(new Set(live.map(({ domain }) => domain.name)).size, live.length, 'a name twice');
    assert.equal(new Set(live.map(({ domain }) => domain.uuid)).size, live.length, 'a UUID twice');
    assert.equal(this.host.stats().domains, live.length);
    for (const model of live) {
      const { state, name } = model.domain;
      const isSuspended = state === 'suspended';
      assert.ok(model.suspended.has(isSuspended), `${name} is ${state}`);
      model.suspended = new Set([isSuspended]);
      if (isSuspended) continue;
      assert.ok((model.states as Set<string>).has(state), `${name} is ${state}, not ${[...model.states].join(' or ')}`);
      model.states = new Set([state as 'running']);
    }
    for (const { domain, isGone } of this.#domains) if (isGone) assert.equal(domain.state, 'destroyed');
    // It looks at every frame; those of a large host are looked at when a program ends.
    if (this.host.stats().memoryBytes <= AUDITED_BYTES_MAX) await this.audit();
  }
  async audit(): Promise<void> {
    assert.deepEqual((await this.host.audit()).problems, []);
  }

  #begin(one: Step, burst: Burst): Begun | undefined {
    const model = this.#domains[one.target % Math.max(1, this.#domains.length)];
    const held = this.#checkpoints[one.other % Math.max(1, this.#checkpoints.length)];
    const [paused, lazy] = one.flags;
    switch (one.verb) {
      case 'create': return {
        promise: this.host.create({ kernel, initrd: 'none', memory: '32MiB', name: one.name, paused }),
        allowed: burst.named(one.name),
        follows: domain => this.#add(domain as Domain, ++this.#families, paused),
      };
      case 'restore': return this.#restore(one, burst, { lazy });
      case 'fork': return held && {
        promise: held.checkpoint.fork(Array.from({ length: 1 + one.target % 3 },
          (_, i) => (i === 0 ? { name: one.name, paused } : { paused }))),
        allowed: burst.of(held, 'ZAZEN_CHECKPOINT_GONE', [...burst.named(one.name)]),
        follows: domains => {
          for (const fork of domains as Domain[]) this.#add(fork, held.family, paused, held.retired);
        },
      };
      case 'save': return held && this.#save(one,
        signal => held.checkpoint.save(join(this.directory, one.file), { signal }),
        burst.of(held, 'ZAZEN_CHECKPOINT_GONE'));
      case 'drop': return held && this.#drop(held);
      default: return model && this.#ofDomain(one, model, held, burst);
    }
  }

  #ofDomain(one: Step, model: ModelDomain, held: ModelCheckpoint | undefined, burst: Burst): Begun | undefined {
    const { domain } = model;
    const allowed = burst.of(model, 'ZAZEN_DOMAIN_GONE');
    switch (one.verb) {
      case 'pause': return { promise: domain.pause(), allowed, follows: () => burst.becomes(model, 'paused') };
      case 'unpause': return { promise: domain.unpause(), allowed, follows: () => burst.becomes(model, 'running') };
      // The guest offers no way to be asked, so nothing takes time.
      case 'suspend': {
        const refusals = ['ZAZEN_DOMAIN_SUSPENDED', 'ZAZEN_SUSPEND_UNDER_WAY'];
        const alone = domain.state === 'suspended' ? new Set(refusals.slice(0, 1)) : allowed;
        return {
          promise: domain.suspend(), allowed: burst.isAlone ? alone : new Set([...allowed, ...refusals]),
          follows: () => burst.suspends(model, true),
        };
      }
      case 'resume': return { promise: domain.resume(), allowed, follows: () => burst.suspends(model, false) };
      case 'destroy':
        model.isGone = true;
        return { promise: domain.destroy(), allowed: new Set(['ok']) };
      case 'checkpoint': {
        const retired = burst.isAlone && domain.state === 'paused' ? domain.stats().instructionsRetired : undefined;
        const taken = (checkpoint: unknown): void => {
          const { family } = model;
          this.#checkpoints.push({ checkpoint: checkpoint as Checkpoint, family, retired, isGone: false });
        };
        return { promise: domain.checkpoint(), allowed, follows: taken };
      }
      case 'saveDomain':
        return this.#save(one, signal => domain.save(join(this.directory, one.file), { signal }), allowed);
      case 'rollback': {
        if (held === undefined) return undefined;
        const isOwn = held.family === model.family;
        const known = burst.of(held, 'ZAZEN_CHECKPOINT_GONE', [isOwn ? 'ok' : 'ZAZEN_CHECKPOINT_FOREIGN']);
        return {
          promise: domain.rollback(held.checkpoint), allowed: burst.of(model, 'ZAZEN_DOMAIN_GONE', [...known]),
          follows: () => {
            burst.suspends(model, false);
            if (burst.isAlone) checkRetired(domain, held.retired);
          },
        };
      }
      default: return undefined;
    }
  }

  #restore(one: Step, burst: Burst, how: { readonly lazy: boolean }): Begun {
    const [paused, , isAborted] = one.flags;
    const signal = isAborted ? soon() : undefined;
    const promise = this.host.restore(join(this.directory, one.file), { name: one.name, paused, signal, ...how });
    return {
      promise, allowed: burst.restoring(one, isAborted),
      follows: domain => this.#add(domain as Domain, ++this.#families, paused),
    };
  }
  #save(one: Step, save: (signal: AbortSignal | undefined) => Promise<unknown>, allowed: ReadonlySet<string>): Begun {
    const signal = one.flags[2] ? soon() : undefined;
    return { promise: save(signal), allowed: signal === undefined ? allowed : new Set([...allowed, 'aborted']) };
  }
  #drop(held: ModelCheckpoint): Begun {
    held.isGone = true;
    return { promise: held.checkpoint.destroy(), allowed: new Set(['ok']) };
  }
  #add(domain: Domain, family: number, isPaused: boolean, retired?: number): void {
    if (isPaused) checkRetired(domain, retired);
    this.#domains.push({ domain, family, states: new Set([isPaused ? 'paused' : 'running']), suspended: new Set([false]), isGone: false });
  }

  /** All guests that are left look at all of their memory, and are gone without a trace. */
  async end(): Promise<void> {
    const live = this.#domains.filter(({ isGone }) => !isGone);
    for (const { domain } of live) await domain.resume().then(() => domain.unpause());
    for (const { domain } of live) {
      const goal = domain.stats().instructionsRetired + 3 * keeperRound(KEPT_PAGES);
      await until('it has looked at its memory', () =>
        domain.state !== 'running' || domain.stats().instructionsRetired > goal);
      assert.equal(domain.state, 'running');
    }
    const all = [...live.map(({ domain }) => domain), ...this.#checkpoints.map(({ checkpoint }) => checkpoint)];
    await Promise.all(all.map(one => one.destroy()));
    for (const model of live) model.isGone = true;
    await this.check();
    await this.audit();
    assert.deepEqual(readdirSync(this.directory).filter(name => !FILES.includes(name)), []);
    rmSync(this.directory, { recursive: true });
  }
}

function checkRetired(domain: Domain, wanted: number | undefined): void {
  if (wanted !== undefined && domain.state === 'paused') assert.equal(domain.stats().instructionsRetired, wanted);
}

function soon(): AbortSignal {
  const controller = new AbortController();
  setImmediate(() => controller.abort(ABORTED));
  return controller.signal;
}

/** What the steps of a burst may do to each other. */
class Burst {
  readonly isAlone: boolean;
  readonly #goneBefore: ReadonlySet<ModelDomain | ModelCheckpoint>;
  readonly #namesBefore: ReadonlySet<string>;
  readonly #filesBefore: ReadonlySet<string>;
  readonly #steps: readonly Step[];
  readonly #changed = new Set<ModelDomain>();
  readonly #suspended = new Set<ModelDomain>();

  constructor(
    domains: readonly ModelDomain[], checkpoints: readonly ModelCheckpoint[], directory: string,
    steps: readonly Step[],
  ) {
    this.isAlone = steps.length === 1;
    this.#steps = steps;
    this.#goneBefore = new Set([...domains, ...checkpoints].filter(({ isGone }) => isGone));
    this.#namesBefore = new Set(domains.flatMap(({ domain, isGone }) => isGone ? [] : [domain.name]));
    this.#filesBefore = new Set(FILES.filter(name => existsSync(join(directory, name))));
  }

  /** Of something that may be gone. @param alive what comes of it while it is there; what is wrong may be told first */
  of(target: ModelDomain | ModelCheckpoint, gone: string, alive: readonly string[] = ['ok']): Set<string> {
    if (this.#goneBefore.has(target)) return new Set([gone, ...alive.filter(code => code !== 'ok')]);
    const isEnding = this.#steps.some(({ verb }) => verb === (gone === 'ZAZEN_DOMAIN_GONE' ? 'destroy' : 'drop'));
    return new Set([...alive, ...(isEnding ? [gone] : [])]);
  }
  named(name: string | undefined): Set<string> {
    if (name === undefined) return new Set(['ok']);
    const isMade = this.#steps.filter(step => step.name === name || step.verb === 'restore').length > 1;
    const isFreed = this.#steps.some(({ verb }) => verb === 'destroy');
    const isTaken = this.#namesBefore.has(name);
    return new Set([...(!isTaken || isFreed ? ['ok'] : []), ...(isTaken || isMade ? ['ZAZEN_DOMAIN_NAME_TAKEN'] : [])]);
  }
  restoring({ file, name }: Step, isAborted: boolean): Set<string> {
    const isSaved = this.#steps.some(step => step.verb.startsWith('save') && step.file === file);
    const isThere = this.#filesBefore.has(file);
    return new Set([
      // The name is looked at first. Without one, it is that of the image, which may be any.
      ...(name === undefined ? ['ZAZEN_DOMAIN_NAME_TAKEN'] : this.named(name).values().filter(code => code !== 'ok')),
      ...(isThere || isSaved ? this.named(name).values().filter(code => code === 'ok') : []),
      ...(isThere ? [] : ['ZAZEN_IMAGE_OPEN']),
      ...(isAborted ? ['aborted'] : []),
    ]);
  }
  /** The last one may be the other one, if there are two. */
  becomes(model: ModelDomain, state: 'running' | 'paused'): void {
    if (!this.#changed.has(model)) model.states = new Set();
    model.states.add(state);
    this.#changed.add(model);
  }
  suspends(model: ModelDomain, isSuspended: boolean): void {
    if (!this.#suspended.has(model)) model.suspended = new Set();
    model.suspended.add(isSuspended);
    this.#suspended.add(model);
  }
}

for (const memory of SIZES) {
  test(`random programs of verbs on a host of ${memory} (seed ${seed})`, async t => {
    await using host = await Host.start({ memory, pcpus: 2 });
    const sum = { ok: 0, failed: 0 };
    await fc.assert(fc.asyncProperty(anyProgram, async bursts => {
      const system = new System(host);
      try {
        for (const one of [...BEGINNING, ...bursts]) await system.run(one);
        await system.end();
      } finally {
        // What a failed program leaves must not be there when a smaller one is tried.
        await Promise.all(host.domains().map(domain => domain.destroy()));
        sum.ok += system.counts.ok;
        sum.failed += system.counts.failed;
      }
    }), { numRuns: RUNS, seed, endOnFailure: process.env['ZAZEN_MODEL_SHRINK'] === undefined });
    t.diagnostic(`${RUNS} programs, ${sum.ok} verbs done, ${sum.failed} refused`);
  });
}

test(`a host is closed in the middle of everything (seed ${seed})`, async () => {
  const workers = (): number =>
    process.getActiveResourcesInfo().filter(name => /worker|messageport/i.test(name)).length;
  const before = workers();
  const more = fc.array(anyStep, { minLength: 6, maxLength: 12 });
  await fc.assert(fc.asyncProperty(anyBurst, more, async (first, second) => {
    await using host = await Host.start({ memory: '512MiB', pcpus: 2 });
    const directory = mkdtempSync(join(folder, 'closed-'));
    const domain = await host.create({ kernel, initrd: 'none', memory: '32MiB' });
    const checkpoint = await domain.checkpoint();
    await checkpoint.save(join(directory, 'x'));
    const begun: Promise<unknown>[] = [];
    const begin = async ({ verb, file, flags: [paused, lazy], wait }: Step): Promise<void> => {
      const path = join(directory, file);
      const how = { lazy };
      const verbs: Readonly<Record<Verb, () => Promise<unknown>>> = {
        create: () => host.create({ kernel, initrd: 'none', memory: '32MiB', paused }),
        pause: () => domain.pause(), unpause: () => domain.unpause(),
        suspend: () => domain.suspend(), resume: () => domain.resume(),
        checkpoint: () => domain.checkpoint(), rollback: () => domain.rollback(checkpoint),
        fork: () => checkpoint.fork(3), save: () => checkpoint.save(path), saveDomain: () => domain.save(path),
        restore: () => host.restore(path, { name: `${verb}-${begun.length}`, ...how }), destroy: () => domain.destroy(),
        drop: () => checkpoint.destroy(),
      };
      begun.push(verbs[verb]());
      begun.at(-1)!.catch(() => {});
      if (wait === 'turn') await new Promise(setImmediate);
    };
    for (const one of first) await begin(one);
    const closing = host.close();
    for (const one of second) await begin(one);
    await closing;
    for (const { status, reason } of await Promise.allSettled(begun) as PromiseRejectedResult[]) {
      if (status === 'rejected') assert.ok(reason instanceof ZazenError, String(reason?.stack ?? reason));
    }
    await assert.rejects(host.audit(), { code: 'ZAZEN_HOST_CLOSED' });
    assert.equal(host.domains().length, 0);
    assert.deepEqual(readdirSync(directory).filter(name => !FILES.includes(name)), []);
  }), { numRuns: Math.ceil(RUNS / 3), seed, endOnFailure: true });
  await until('no worker is left', () => workers() === before);
});
