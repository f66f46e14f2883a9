// The host's half of the emulated devices of a domain of type hvm: what its pCPUs' threads leave to the host's thread.
// They ring the domain's bit in HOST_EVENTS, and `service` looks at all devices.
//
//   slot   device               host's end
//   ──────────────────────────────────────────────────────────────────────────────────────
//   –      PL011 (ttyAMA0)      the domain's console back end, through the console page
//   –      PL031                a timer for its alarm
//   0      virtio console       a console back end of its own
//   1      virtio entropy       the host's random numbers
//   2 …    virtio block         the domain's disks, in the order in which the guest has them (virtio-disk.ts)
//   … 10   virtio net           the domain's network cards, the first one in the last slot; served by the network thread (virtio-nic.ts)
//   11     virtio input         the buttons that turn it off or start it again

import type { Duplex } from 'node:stream';
import { BUTTONS_SLOT, EMULATED, VIRTIO_SLOTS } from '../abi/emulated-devices.ts';
import { assert } from '../base/assert.ts';
import { ConsoleBackend } from '../devices/console/backend.ts';
import type { ConsoleState } from '../devices/console/backend.ts';
import { Pl011, resetPl011 } from '../devices/pl011/registers.ts';
import { Pl031 } from '../devices/pl031/registers.ts';
import { VirtioConsole } from '../devices/virtio/console.ts';
import { VirtioEntropy } from '../devices/virtio/entropy.ts';
import { VirtioInput } from '../devices/virtio/input.ts';
import { VirtioSlot } from '../devices/virtio/slot.ts';
import type { SlotState, VirtioModel } from '../devices/virtio/slot.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { DeviceFrame } from '../hypervisor/emulated-devices.ts';
import { GuestRam } from '../hypervisor/guest-ram.ts';
import type { HostCore } from './host-core.ts';
import type { EmulatedStats } from './types.ts';

/** What the devices have beside the frame with their registers, which goes with the state of the domain. */
export interface EmulatedState {
  readonly slots: readonly SlotState[];
  /** Of the virtio console. */
  readonly console: ConsoleState;
}

const CONSOLE_SLOT = 0;
const ENTROPY_SLOT = 1;
const ALL_SLOTS: readonly number[] = Array.from({ length: VIRTIO_SLOTS }, (_, slot) => slot);
/** For disks and network cards. */
const DEVICE_SLOTS = ALL_SLOTS.slice(ENTROPY_SLOT + 1, BUTTONS_SLOT);
export const MACHINE_DEVICES_MAX = DEVICE_SLOTS.length;
const ALARM_MAX_MILLIS = 2 ** 31 - 1;

/** What the machine has of a device, whose queues another thread may serve. */
export type MachineSlot = Pick<VirtioSlot, 'service' | 'save' | 'restore' | 'close'>;

export class EmulatedMachine {
  readonly #domid: number;
  readonly #record: DomainRecord;
  readonly #frame: DeviceFrame;
  readonly #serviceSerial: () => void;
  readonly #pl011 = new Pl011();
  readonly #pl031: Pl031;
  readonly #buttons = new VirtioInput();
  readonly #transport = new VirtioConsole(() => this.#console.service());
  #console: ConsoleBackend;
  #isConsoleClosed = false;
  /** By slot. */
  readonly #slots = new Map<number, MachineSlot>();
  readonly #buttonsSlot: VirtioSlot;
  readonly #ram: GuestRam;
  /** While the domain is being made. */
  #state: EmulatedState | undefined;
  #alarm: NodeJS.Timeout | undefined;

  /** @param serviceSerial looks after the back end of the domain's console */
  constructor({ thread, random }: HostCore, record: DomainRecord, serviceSerial: () => void, state?: EmulatedState) {
    this.#domid = record.domid;
    this.#record = record;
    this.#frame = new DeviceFrame(thread.gic, thread.hypercalls.domains);
    this.#serviceSerial = serviceSerial;
    this.#pl031 = new Pl031(thread.clock);
    this.#select();
    if (state === undefined) resetPl011(this.#frame);
    this.#console = this.#openConsole(state?.console);
    this.#ram = new GuestRam(thread.environment, record);
    this.#state = state;
    this.#attach(CONSOLE_SLOT, this.#transport);
    this.#attach(ENTROPY_SLOT, new VirtioEntropy(random));
    this.#buttonsSlot = this.#attach(BUTTONS_SLOT, this.#buttons);
  }

  /** In the first free slot; no more than MACHINE_DEVICES_MAX of both kinds. */
  attachDisk(model: VirtioModel): VirtioSlot {
    return this.#attach(this.#free(DEVICE_SLOTS), model);
  }
  /** In the last free slot. @param open makes it, with what it goes on from while the domain is being made */
  attachNic<T extends { readonly inSlot: MachineSlot }>(open: (slot: number, record: DomainRecord, state?: SlotState) => T): T {
    const slot = this.#free(DEVICE_SLOTS.toReversed());
    const nic = open(slot, this.#record, this.#state?.slots[slot]);
    this.#slots.set(slot, nic.inSlot);
    return nic;
  }

  #attach(slot: number, model: VirtioModel): VirtioSlot {
    const parts = { frame: this.#frame, ram: this.#ram, domid: this.#domid, slot };
    const attached = new VirtioSlot(parts, model, this.#state?.slots[slot]);
    this.#slots.set(slot, attached);
    return attached;
  }

  #free(slots: readonly number[]): number {
    const free = slots.find((slot) => !this.#slots.has(slot));
    assert(free !== undefined, 'no more devices than there are slots');
    return free;
  }

  /** All devices are attached. If the guest was running before, what it has asked for meanwhile is done. */
  start(): void {
    if (this.#state === undefined) return;
    this.#state = undefined;
    this.service(true);
  }

  #select(): void {
    assert(this.#frame.select(this.#domid), 'the domain has emulated devices');
  }

  /** The driver hears of what was done by the queues. */
  #openConsole(state?: ConsoleState): ConsoleBackend {
    return new ConsoleBackend({ transport: this.#transport, notify: () => {}, state });
  }

  /** A stream of its own to the virtio console. */
  attachConsole(): Duplex {
    return this.#console.attach();
  }

  /** Presses the button for it. @returns false if the guest has no driver for the buttons, or does not look at them */
  press(button: 'poweroff' | 'reboot'): boolean {
    return this.#buttons.press(this.#buttonsSlot, button === 'poweroff' ? 'POWER' : 'RESTART');
  }

  /** The serial port's back end has taken output or given input. */
  serialMoved(): void {
    this.#select();
    this.#pl011.moved(this.#frame);
  }

  /** @param always whether or not the guest has notified of anything */
  service(always = false): void {
    this.#serviceSerial();
    this.#serviceAlarm();
    for (const slot of this.#slots.values()) slot.service(always);
  }

  #serviceAlarm(): void {
    this.#select();
    clearTimeout(this.#alarm);
    const millis = this.#pl031.serve(this.#frame);
    if (millis === undefined) return;
    this.#alarm = setTimeout(() => this.#serviceAlarm(), Math.min(Math.max(millis, 1), ALARM_MAX_MILLIS)).unref();
  }

  stats(): EmulatedStats {
    this.#select();
    return { accesses: this.#frame.get(EMULATED.at.accesses), hostCalls: this.#frame.get(EMULATED.at.hostCalls) };
  }

  save(): EmulatedState {
    const slots = ALL_SLOTS.map((slot) => this.#slots.get(slot)?.save() ?? { inFlight: [] });
    return { slots, console: this.#console.save() };
  }

  /** The domain's registers and memory are those that go with the state. */
  restore(state: EmulatedState): void {
    for (const [number, slot] of this.#slots) slot.restore(state.slots[number]);
    if (this.#isConsoleClosed) this.#console = this.#openConsole(state.console);
    this.#isConsoleClosed = false;
    this.#console.restore(state.console);
    this.serialMoved();
    this.service(true);
  }

  /** The guest has stopped by itself. */
  closeConsole(): void {
    this.#isConsoleClosed = true;
    this.#console.close();
  }

  close(): void {
    clearTimeout(this.#alarm);
    this.closeConsole();
    for (const slot of this.#slots.values()) slot.close();
  }
}
