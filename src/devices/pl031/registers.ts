// The PL031 real-time clock (Arm DDI 0224): a counter of seconds that begins at the host's Unix time, and an alarm. The
// counter is computed when it is read; the alarm needs somebody who waits for it, which is the host's thread. A guest
// that sets the clock changes the difference to the host's, which a checkpoint keeps.

import {
  EMULATED, GUEST_PL031_BASE, GUEST_PL031_SIZE, GUEST_PL031_SPI, PL031, PL031_STATE,
} from '../../abi/emulated-devices.ts';
import type { Clock } from '../../base/clock.ts';
import type { DeviceFrame, RegisterModel } from '../../hypervisor/emulated-devices.ts';

const AT = EMULATED.at.pl031;
const S = PL031_STATE.at;
/** From 0xfe0: part 0x031 of Arm; then the cell's. */
const IDENTIFICATION = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
/** The counter runs. */
const CR_ENABLED = 1;
/** What lies further ahead than this lies behind. */
const AHEAD_MAX = 2 ** 31;

export class Pl031 implements RegisterModel {
  readonly base = GUEST_PL031_BASE;
  readonly sizeBytes = GUEST_PL031_SIZE;
  readonly #clock: Clock;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  load(frame: DeviceFrame, offset: number): number {
    switch (offset) {
      case PL031.DR: return this.#counter(frame);
      case PL031.MR: return frame.get(AT + S.match);
      case PL031.LR: return frame.get(AT + S.load);
      case PL031.CR: return CR_ENABLED;
      case PL031.IMSC: return frame.get(AT + S.imsc);
      case PL031.RIS: return frame.get(AT + S.ris);
      case PL031.MIS: return frame.get(AT + S.ris) & frame.get(AT + S.imsc);
      default: return IDENTIFICATION[(offset - PL031.IDENTIFICATION) / 4] ?? 0;
    }
  }

  store(frame: DeviceFrame, offset: number, value: number): void {
    frame.lock(AT + S.lock);
    const wasArmed = frame.get(AT + S.armed);
    switch (offset) {
      case PL031.MR: frame.set(AT + S.match, value); break;
      case PL031.LR:
        frame.set(AT + S.load, value);
        frame.set(AT + S.offset, value - Math.floor(this.#clock.wallMillis() / 1000));
        break;
      case PL031.IMSC: frame.set(AT + S.imsc, value & 1); break;
      case PL031.ICR: frame.set(AT + S.ris, frame.get(AT + S.ris) & ~value); break;
    }
    if (offset === PL031.MR || offset === PL031.LR) {
      const ahead = (frame.get(AT + S.match) - this.#counter(frame)) >>> 0;
      frame.set(AT + S.armed, ahead < AHEAD_MAX ? 1 : 0);
    }
    this.#drive(frame);
    const mustWait = frame.get(AT + S.armed) !== 0 && (offset === PL031.MR || offset === PL031.LR);
    frame.unlock(AT + S.lock);
    if (mustWait || wasArmed !== frame.get(AT + S.armed)) frame.callHost();
  }

  /**
   * In the host's thread: raises the alarm if it is time.
   * @returns milliseconds until it will be; undefined: there is no alarm
   */
  serve(frame: DeviceFrame): number | undefined {
    if (frame.get(AT + S.armed) === 0) return undefined;
    frame.lock(AT + S.lock);
    const ahead = (frame.get(AT + S.match) - this.#counter(frame)) | 0;
    const isDue = frame.get(AT + S.armed) !== 0 && ahead <= 0;
    if (isDue) {
      frame.set(AT + S.armed, 0);
      frame.set(AT + S.ris, 1);
      this.#drive(frame);
    }
    frame.unlock(AT + S.lock);
    return isDue ? undefined : ahead * 1000 - (this.#clock.wallMillis() % 1000);
  }

  #counter(frame: DeviceFrame): number {
    return (Math.floor(this.#clock.wallMillis() / 1000) + frame.get(AT + S.offset)) >>> 0;
  }

  #drive(frame: DeviceFrame): void {
    frame.setLine(GUEST_PL031_SPI, (frame.get(AT + S.ris) & frame.get(AT + S.imsc)) !== 0);
  }
}
