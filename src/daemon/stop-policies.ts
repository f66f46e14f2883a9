// What becomes of domains that stopped by themselves: xl's on_poweroff, on_reboot and on_crash, for the domains that
// were created or forked over the control socket. One that is suspended has not stopped.

import { ZazenError } from '../base/errors.ts';
import type { CreateOptions, Domain, Host, ShutdownReason } from '../host/types.ts';
import type { ControlledSpec, StopAction, StopPolicy } from './command.ts';

/** A guest that stops sooner than this after its start would only be started over and over. */
const RESTART_MIN_MILLIS = 1000;

/** How a domain was created, which is how it is started again. */
export interface Origin {
  /** Undefined for a fork of a domain that was not created here: it cannot be started again. */
  readonly spec: ControlledSpec | undefined;
  readonly policy: StopPolicy;
}

export class StopPolicies {
  readonly #host: Host;
  readonly #log: (line: string) => void;
  readonly #origins = new WeakMap<Domain, Origin>();

  constructor(host: Host, log: (line: string) => void) {
    this.#host = host;
    this.#log = log;
  }

  async create(spec: ControlledSpec, policy: StopPolicy, options: CreateOptions = {}): Promise<Domain> {
    const domain = await this.#host.create(spec, options);
    this.adopt(domain, { spec, policy });
    return domain;
  }

  /** For forks: the origin of what they are forks of. */
  origin(domain: Domain): Origin {
    return this.#origins.get(domain) ?? { spec: undefined, policy: {} };
  }

  /** Does what the origin's policy says whenever the domain stops. */
  adopt(domain: Domain, origin: Origin): void {
    this.#origins.set(domain, origin);
    void this.#follow(domain, origin, performance.now());
  }

  async #follow(domain: Domain, { spec, policy }: Origin, startedMillis: number): Promise<void> {
    // Events, as one that was preserved may be rolled back and stop again.
    for await (const event of domain.events()) {
      if (event.type !== 'shutdown') continue;
      const action = actionFor(event.reason, policy);
      if (action === 'preserve') continue;
      await domain.destroy();
      if (action === 'destroy' || spec === undefined) continue;
      if (performance.now() - startedMillis < RESTART_MIN_MILLIS) {
        this.#log(`${domain.name} stopped (${event.reason}) at once; it is not started again`);
      } else await this.#restart(domain, spec, policy);
    }
  }

  async #restart(domain: Domain, spec: ControlledSpec, policy: StopPolicy): Promise<void> {
    // As it was created, but for what its creator may have wanted to look at first.
    const again = { ...spec, name: domain.name, uuid: domain.uuid, paused: false };
    try {
      await this.create(again, policy);
    } catch (error) {
      if (!(error instanceof ZazenError)) throw error;
      if (error.code !== 'ZAZEN_HOST_CLOSED') this.#log(`${domain.name} cannot be started again: ${error.message}`);
    }
  }
}

/** What is to be done about a domain that ended so. */
export function actionFor(reason: ShutdownReason, policy: StopPolicy): StopAction {
  switch (reason) {
    case 'poweroff': return policy.onPoweroff ?? 'destroy';
    case 'reboot': return policy.onReboot ?? 'restart';
    case 'crash': case 'watchdog': return policy.onCrash ?? 'destroy';
  }
}
