// The thread that networks live in (network-loop.ts), as the host's main thread has it. It is started for the first card, or
// with a host that has options for networks.

import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads';
import type { MessagePort, Worker } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { assertNoneFailed } from '../base/failure.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import type { PostedImage } from './image-source.ts';
import { valueOf } from './network-calls.ts';
import type { Answer, CallArguments, CallMessage, CallName, CallResult, NumberedAnswer } from './network-calls.ts';
import { startWorker } from './worker-thread.ts';

/** How often who waits for an answer looks whether the thread is still there. */
const LOOK_MILLIS = 100;

export interface NetworkWorkerData {
  readonly memory: WebAssembly.Memory;
  /** Counts the answers to calls that somebody waits for. */
  readonly answered: Int32Array;
  readonly answers: MessagePort;
  /** Images that domains were restored from (image-source.ts). */
  readonly images: MessagePort;
}

/** What the thread says by itself: it is there; there is no frame for a guest's page. */
export type NetworkNotice = 'ready' | 'shortOfFrames';

/**
 * Sleeps until the word is another one. The bell alone says nothing: it may be that of the answer before, which was found without.
 * @param sleep until the bell rings, or for a while
 */
export function untilChanged(
  word: Int32Array, before: number, sleep = (): string => Atomics.wait(word, 0, before, LOOK_MILLIS),
): void {
  while (Atomics.load(word, 0) === before) if (sleep() === 'timed-out') assertNoneFailed();
}

export class NetworkThread {
  readonly #machine: MachineMemory;
  readonly #onShortage: () => void;
  readonly #answered = new Int32Array(new SharedArrayBuffer(4));
  readonly #asked = new Map<number, (answer: Answer) => void>();
  /** Images that it will have to know of. */
  readonly #imagesBefore = new Map<number, PostedImage>();
  #nextAnswer = 1;
  #worker: Worker | undefined;
  #answers: MessagePort | undefined;
  #images: MessagePort | undefined;
  #begun: Promise<void> | undefined;
  #isReady = false;

  /** @param onShortage makes room, if it can */
  constructor(machine: MachineMemory, onShortage: () => void) {
    this.#machine = machine;
    this.#onShortage = onShortage;
  }

  /** Whether it can be called. */
  get isReady(): boolean {
    return this.#isReady;
  }

  get busyMillis(): number {
    return this.#worker?.performance.eventLoopUtilization().active ?? 0;
  }

  /** Resolves when it is there. */
  begin(): Promise<void> {
    return this.#begun ??= this.#start();
  }

  #start(): Promise<void> {
    const [answers, images] = [new MessageChannel(), new MessageChannel()];
    const workerData: NetworkWorkerData = {
      memory: this.#machine.memory, answered: this.#answered, answers: answers.port2, images: images.port2,
    };
    const worker = startWorker(new URL('./network-worker.ts', import.meta.url),
      { workerData, name: 'network', transferList: [answers.port2, images.port2] });
    this.#worker = worker;
    this.#answers = answers.port1;
    this.#images = images.port1;
    for (const port of [answers.port1, images.port1]) port.unref();
    for (const image of this.#imagesBefore.values()) images.port1.postMessage(image);
    this.#imagesBefore.clear();
    // Our bug: nobody knows what it has left undone.
    worker.on('error', (error) => { throw error; });
    return new Promise((resolve) => {
      worker.on('message', (message: NetworkNotice | NumberedAnswer) => {
        if (message === 'ready') {
          this.#isReady = true;
          worker.unref();
          resolve();
        } else if (message === 'shortOfFrames') this.#onShortage();
        else this.#settle(message);
      });
    });
  }

  #settle({ answer, what }: NumberedAnswer): void {
    this.#asked.get(answer)!(what);
    this.#asked.delete(answer);
    // Somebody waits as long as there is something to wait for.
    if (this.#asked.size === 0) this.#worker!.unref();
  }

  #send(message: CallMessage): void {
    assert(this.#isReady, 'the network thread is there');
    this.#worker!.postMessage(message);
  }

  /** Waits for the answer. The thread is never long at anything, and never waits for this one. */
  call<Name extends CallName>(name: Name, ...args: CallArguments<Name>): CallResult<Name> {
    const before = Atomics.load(this.#answered, 0);
    this.#send({ name, args, answer: 'wait' });
    untilChanged(this.#answered, before);
    return valueOf(receiveMessageOnPort(this.#answers!)!.message as Answer) as CallResult<Name>;
  }

  async ask<Name extends CallName>(name: Name, ...args: CallArguments<Name>): Promise<CallResult<Name>> {
    const number = this.#nextAnswer++;
    const answer = new Promise<Answer>((resolve) => { this.#asked.set(number, resolve); });
    this.#worker!.ref();
    this.#send({ name, args, answer: number });
    return valueOf(await answer) as CallResult<Name>;
  }

  post<Name extends CallName>(name: Name, ...args: CallArguments<Name>): void {
    this.#send({ name, args, answer: undefined });
  }

  postImage(image: PostedImage): void {
    if (this.#images !== undefined) this.#images.postMessage(image);
    else if (image.kind === 'gone') this.#imagesBefore.delete(image.image);
    else this.#imagesBefore.set(image.image, image);
  }

  async close(): Promise<void> {
    if (this.#begun === undefined) return;
    this.#worker!.ref();
    await this.#begun;
    await this.ask('close');
    this.#isReady = false;
    for (const port of [this.#answers!, this.#images!]) port.close();
    await this.#worker!.terminate();
  }
}
