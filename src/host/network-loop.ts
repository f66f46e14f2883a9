// What the network thread does: hears what guests tell it, which is not the main thread's affair any more, and what the main
// thread asks for (network-calls.ts); the rest, sockets and timers, is the networks' own (network-service.ts).

import type { MessagePort } from 'node:worker_threads';
import { HOST_LISTENER } from '../abi/domain-record.ts';
import { systemClock } from '../base/clock.ts';
import { DeviceFrame } from '../hypervisor/emulated-devices.ts';
import { DomainBus } from '../hypervisor/guest-bus.ts';
import { GuestRam } from '../hypervisor/guest-ram.ts';
import { HostPorts } from '../hypervisor/host-ports.ts';
import { HypervisorThread, NETWORK_THREAD } from '../hypervisor/thread.ts';
import { PageLoader } from '../memory/image-pages.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { assertNoLockHeld } from '../memory/spin.ts';
import { PostedImages } from './image-source.ts';
import { answerOf } from './network-calls.ts';
import type { Answer, CallMessage, NumberedAnswer } from './network-calls.ts';
import { NetworkService } from './network-service.ts';
import type { CardGuests } from './network-service.ts';
import type { NetworkNotice, NetworkWorkerData } from './network-thread.ts';

/** The main thread is asked for frames no more often than this: cards try again after some time anyhow. */
const SHORTAGE_MILLIS = 20;

export function runNetworkThread({ memory, answered, answers, images }: NetworkWorkerData, main: MessagePort): void {
  const machine = MachineMemory.attach(memory);
  const thread = new HypervisorThread(machine, NETWORK_THREAD, systemClock);
  thread.p2m.loader = new PageLoader(thread.heap, thread.p2m, new PostedImages(machine, images));
  const tell = (notice: NetworkNotice | NumberedAnswer): void => main.postMessage(notice);
  thread.heap.reclaim = askForFrames(() => tell('shortOfFrames'));
  const service = new NetworkService(guestsOf(thread, () => ports));
  const ports = new HostPorts(thread.hypercalls.channels, (domid) => service.serveSlots(domid), HOST_LISTENER.network);
  const answer = (what: Answer): void => {
    answers.postMessage(what);
    Atomics.add(answered, 0, 1);
    Atomics.notify(answered, 0);
  };
  main.on('message', (message: CallMessage) => {
    assertNoLockHeld();
    if (message.answer === undefined) execute(service, message);
    else if (message.answer === 'wait') answer(executeAndAnswer(service, message));
    else void executeLong(service, message).then((what) => tell({ answer: message.answer as number, what }));
  });
  tell('ready');
  void listen(ports);
}

/** Until the thread is ended. */
async function listen(ports: HostPorts): Promise<void> {
  for (;;) {
    const seen = ports.doorbell;
    ports.deliver();
    if (ports.doorbell === seen) await ports.untilDoorbell(seen);
    // Guests that never stop ringing must not keep all else waiting that this thread has to do.
    else await new Promise((resolve) => setImmediate(resolve));
  }
}

function execute(service: NetworkService, { name, args }: CallMessage): unknown {
  return (service[name] as (...args: readonly unknown[]) => unknown).apply(service, args as unknown[]);
}
function executeAndAnswer(service: NetworkService, message: CallMessage): Answer {
  try {
    return { value: execute(service, message) };
  } catch (error) {
    return answerOf(error);
  }
}
async function executeLong(service: NetworkService, message: CallMessage): Promise<Answer> {
  try {
    return { value: await execute(service, message) };
  } catch (error) {
    return answerOf(error);
  }
}

/** What can be given up is the main thread's to give: the card tries again later. */
function askForFrames(ask: () => void): () => boolean {
  let askedMillis = -Infinity;
  return () => {
    const now = performance.now();
    if (now - askedMillis < SHORTAGE_MILLIS) return false;
    askedMillis = now;
    ask();
    return false;
  };
}

function guestsOf(thread: HypervisorThread, ports: () => HostPorts): CardGuests {
  const atWork = betweenCode(thread);
  return {
    busOf: (domid) => new DomainBus(thread, ports(), domid, atWork),
    slotOf: (domid, slot) => ({
      frame: new DeviceFrame(thread.gic, thread.hypercalls.domains),
      ram: new GuestRam(thread.environment, thread.hypercalls.domains.record(domid)),
      domid, slot, atWork,
    }),
  };
}

/**
 * This thread runs no code: what it does with the machine's memory counts as such, so that who has stopped the world finds
 * nothing half done. A frame goes from one guest to another in the middle of that.
 */
function betweenCode({ safePoints }: HypervisorThread): <T>(body: () => T) => T {
  let depth = 0;
  return (body) => {
    if (depth++ === 0) safePoints.enterIdleWork();
    try {
      return body();
    } finally {
      if (--depth === 0) safePoints.leave();
    }
  };
}
