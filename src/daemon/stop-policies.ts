// What becomes of domains that stopped by themselves: xl's on_poweroff, on_reboot and on_crash, for the domains that
// were created over the control socket. A domain that suspended itself is kept.

import { ZazenError } from '../base/errors.ts';
import type { Domain, Host, ShutdownReason } from '../host/types.ts';
import type { ControlledSpec, StopAction, StopPolicy } from './command.ts';

/** A guest that stops sooner than this after its start would only be started over and over. */
const RESTART_MIN_MILLIS = 1000;

export class StopPolicies {
  readonly #host: Host;
  readonly #log: (line: string) => void;

  constructor(host: Host, log: (line: string) => void) {
    this.#host = host;
    this.#log = log;
  }

  async create(spec: ControlledSpec, policy: StopPolicy, options: { signal?: AbortSignal; log?: (line: string) => void }): Promise<Domain> {
    const domain = await this.#host.create(spec, options);
    void this.#follow(domain, spec, policy);
    return domain;
  }

  async #follow(domain: Domain, spec: ControlledSpec, policy: StopPolicy): Promise<void> {
    for (let current = domain; ;) {
      const startedMillis = performance.now();
      const reason = await current.waitForShutdown();
      const action = actionFor(reason, policy);
      if (action === 'preserve') return;
      await current.destroy();
      if (action === 'destroy') return;
      if (performance.now() - startedMillis < RESTART_MIN_MILLIS) {
        this.#log(`${current.name} stopped (${reason}) at once; it is not started again`);
        return;
      }
      // As it was created, but for what its creator may have wanted to look at first.
      const again = { ...spec, name: current.name, uuid: current.uuid, paused: false };
      try {
        current = await this.#host.create(again);
      } catch (error) {
        if (!(error instanceof ZazenError)) throw error;
        if (error.code !== 'ZAZEN_HOST_CLOSED') this.#log(`${current.name} cannot be started again: ${error.message}`);
        return;
      }
    }
  }
}

/** What is to be done about a domain that ended so. */
export function actionFor(reason: ShutdownReason | 'destroyed', policy: StopPolicy): StopAction {
  switch (reason) {
    case 'poweroff': return policy.onPoweroff ?? 'destroy';
    case 'reboot': return policy.onReboot ?? 'restart';
    case 'crash': case 'watchdog': return policy.onCrash ?? 'destroy';
    case 'suspend': return 'preserve';
    case 'destroyed': return 'destroy';
  }
}
