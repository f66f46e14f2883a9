// The PL011 serial port (Arm DDI 0183), as a terminal without a line would have it: what is sent has left at once, what
// is received waits as long as it must. Both ways go through the domain's console page (abi/xen-console.ts), whose
// other end is the host's console back end, the same as of a paravirtual console:
//
//   guest ── DR ──► out ring, 2048 bytes ──► console back end   FR.TXFF only when the ring is full: a driver that looks
//         ◄─ DR ──  in ring,  1024 bytes ◄── (host's thread)    at it sends a screenful without one interrupt
//
// Interrupts are latched and cleared as the manual says; the transmit interrupt comes when there is room for a whole
// FIFO. Baud rate and parity are kept and mean nothing; of the modem lines, RTS holds up input once flow control is on.
// The rings lie in a page that the guest may have mapped, so their indices are bounded at each use.

import { DOMAIN, HELD_FRAME } from '../../abi/domain-record.ts';
import {
  EMULATED, GUEST_PL011_BASE, GUEST_PL011_SIZE, GUEST_PL011_SPI, PL011, PL011_FR, PL011_INT, PL011_STATE,
} from '../../abi/emulated-devices.ts';
import { FRAME_BYTES } from '../../abi/machine-memory.ts';
import { XENCONS_INTERFACE, XENCONS_IN_BYTES, XENCONS_OUT_BYTES } from '../../abi/xen-console.ts';
import type { DeviceFrame, RegisterModel } from '../../hypervisor/emulated-devices.ts';

const AT = EMULATED.at.pl011;
const S = PL011_STATE.at;
const FIFO_BYTES = 32;
const LCR_FEN = 0x10;
/** Half full, both ways. */
const IFLS_RESET = 0x12;
/** Request to send, and its line is used: what the other end has to send waits while it is not asked for. */
const CR_RTS = 0x800;
const CR_CTSEN = 0x8000;
/** Transmitter and receiver are on. */
const CR_RESET = 0x300;
/** From 0xfe0: part 0x011 of Arm, revision 3 (the one with FIFOs of 32); then the cell's. */
const IDENTIFICATION = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
/** By the receive field of IFLS. */
const RX_TRIGGERS = [4, 8, 16, 24, 28];

const RING = XENCONS_INTERFACE.at;

/** Puts the port into its state after reset; the frame is all zero. */
export function resetPl011(frame: DeviceFrame): void {
  frame.set(AT + S.cr, CR_RESET);
  frame.set(AT + S.ifls, IFLS_RESET);
}

export class Pl011 implements RegisterModel {
  readonly base = GUEST_PL011_BASE;
  readonly sizeBytes = GUEST_PL011_SIZE;

  load(frame: DeviceFrame, offset: number): number {
    switch (offset) {
      case PL011.FR: return this.#flags(frame);
      case PL011.DR: return this.#receive(frame);
      case PL011.IMSC: return frame.get(AT + S.imsc);
      case PL011.RIS: return frame.get(AT + S.ris);
      case PL011.MIS: return frame.get(AT + S.ris) & frame.get(AT + S.imsc);
      case PL011.CR: return frame.get(AT + S.cr);
      case PL011.LCR_H: return frame.get(AT + S.lcrH);
      case PL011.IBRD: return frame.get(AT + S.ibrd);
      case PL011.FBRD: return frame.get(AT + S.fbrd);
      case PL011.IFLS: return frame.get(AT + S.ifls);
      case PL011.ILPR: return frame.get(AT + S.ilpr);
      case PL011.DMACR: return frame.get(AT + S.dmacr);
      default: return IDENTIFICATION[(offset - PL011.IDENTIFICATION) / 4] ?? 0;
    }
  }

  store(frame: DeviceFrame, offset: number, value: number): void {
    switch (offset) {
      case PL011.DR: return this.#send(frame, value);
      case PL011.IMSC: return this.#change(frame, S.imsc, value & 0x7ff);
      case PL011.ICR: return this.#change(frame, S.ris, frame.get(AT + S.ris) & ~value);
      case PL011.CR: return this.#control(frame, value & 0xff87);
      case PL011.LCR_H: return frame.set(AT + S.lcrH, value & 0xff);
      case PL011.IBRD: return frame.set(AT + S.ibrd, value & 0xffff);
      case PL011.FBRD: return frame.set(AT + S.fbrd, value & 0x3f);
      case PL011.IFLS: return frame.set(AT + S.ifls, value & 0x3f);
      case PL011.ILPR: return frame.set(AT + S.ilpr, value & 0xff);
      case PL011.DMACR: return frame.set(AT + S.dmacr, value & 7);
    }
  }

  /** In the host's thread: the back end has taken output or given input. */
  moved(frame: DeviceFrame): void {
    frame.lock(AT + S.lock);
    const page = pageOf(frame);
    let ris = frame.get(AT + S.ris);
    if (frame.get(AT + S.txShort) !== 0 && roomOut(frame, page) >= FIFO_BYTES) {
      frame.set(AT + S.txShort, 0);
      ris |= PL011_INT.tx;
    }
    ris |= received(frame, waitingIn(frame, page));
    this.#setRaw(frame, ris);
    frame.unlock(AT + S.lock);
  }

  #control(frame: DeviceFrame, value: number): void {
    frame.lock(AT + S.lock);
    frame.set(AT + S.cr, value);
    const others = frame.get(AT + S.ris) & ~(PL011_INT.rx | PL011_INT.rt);
    this.#setRaw(frame, others | received(frame, waitingIn(frame, pageOf(frame))));
    frame.unlock(AT + S.lock);
  }

  #flags(frame: DeviceFrame): number {
    const page = pageOf(frame);
    const waiting = waitingIn(frame, page);
    return PL011_FR.cts | PL011_FR.dsr | PL011_FR.dcd
      | (roomOut(frame, page) === 0 ? PL011_FR.txff : PL011_FR.txfe)
      | (waiting === 0 ? PL011_FR.rxfe : waiting >= FIFO_BYTES ? PL011_FR.rxff : 0);
  }

  #send(frame: DeviceFrame, value: number): void {
    const { u8 } = frame.machine;
    frame.lock(AT + S.lock);
    const page = pageOf(frame);
    const room = roomOut(frame, page);
    // As with the real one, what finds no room is lost.
    if (room > 0) {
      const produced = word(frame, page + RING.out_prod);
      u8[page + RING.out + (produced % XENCONS_OUT_BYTES)] = value;
      Atomics.store(frame.machine.u32, (page + RING.out_prod) / 4, produced + 1);
    }
    const ris = frame.get(AT + S.ris);
    if (room > FIFO_BYTES) this.#setRaw(frame, ris | PL011_INT.tx);
    else {
      frame.set(AT + S.txShort, 1);
      this.#setRaw(frame, ris & ~PL011_INT.tx);
    }
    frame.unlock(AT + S.lock);
    frame.callHost();
  }

  #receive(frame: DeviceFrame): number {
    frame.lock(AT + S.lock);
    const page = pageOf(frame);
    const waiting = waitingIn(frame, page);
    let byte = 0;
    if (waiting > 0) {
      const consumed = word(frame, page + RING.in_cons);
      byte = frame.machine.u8[page + RING.in + (consumed % XENCONS_IN_BYTES)]!;
      Atomics.store(frame.machine.u32, (page + RING.in_cons) / 4, consumed + 1);
      const others = frame.get(AT + S.ris) & ~(PL011_INT.rx | PL011_INT.rt);
      this.#setRaw(frame, others | received(frame, waiting - 1));
    }
    frame.unlock(AT + S.lock);
    if (waiting === 1) frame.callHost();
    return byte;
  }

  #change(frame: DeviceFrame, field: number, value: number): void {
    frame.lock(AT + S.lock);
    if (field === S.ris) this.#setRaw(frame, value);
    else {
      frame.set(AT + field, value);
      this.#drive(frame);
    }
    frame.unlock(AT + S.lock);
  }

  #setRaw(frame: DeviceFrame, ris: number): void {
    if (ris === frame.get(AT + S.ris)) return;
    frame.set(AT + S.ris, ris);
    this.#drive(frame);
  }

  #drive(frame: DeviceFrame): void {
    frame.setLine(GUEST_PL011_SPI, (frame.get(AT + S.ris) & frame.get(AT + S.imsc)) !== 0);
  }
}

/** The interrupts for so many bytes that wait. */
function received(frame: DeviceFrame, waiting: number): number {
  if (waiting === 0) return 0;
  const hasFifo = (frame.get(AT + S.lcrH) & LCR_FEN) !== 0;
  const trigger = hasFifo ? RX_TRIGGERS[frame.get(AT + S.ifls) >>> 3] ?? FIFO_BYTES : 1;
  return PL011_INT.rt | (waiting >= trigger ? PL011_INT.rx : 0);
}

function pageOf({ record }: DeviceFrame): number {
  return record.get(DOMAIN.at.console + HELD_FRAME.at.mfn) * FRAME_BYTES;
}
function word(frame: DeviceFrame, address: number): number {
  return Atomics.load(frame.machine.u32, address / 4);
}
/** Room for output; 0 when the indices are nonsense. */
function roomOut(frame: DeviceFrame, page: number): number {
  const used = (word(frame, page + RING.out_prod) - word(frame, page + RING.out_cons)) >>> 0;
  return used > XENCONS_OUT_BYTES ? 0 : XENCONS_OUT_BYTES - used;
}
/** Bytes of input that the other end may send; 0 when the indices are nonsense. */
function waitingIn(frame: DeviceFrame, page: number): number {
  if ((frame.get(AT + S.cr) & (CR_CTSEN | CR_RTS)) === CR_CTSEN) return 0;
  const count = (word(frame, page + RING.in_prod) - word(frame, page + RING.in_cons)) >>> 0;
  return count > XENCONS_IN_BYTES ? 0 : count;
}
