// The real host and guest files behind the command line, loaded when first used: help and mistakes are told at once.

import type { Services } from './verb.ts';

export const services: Services = {
  startHost: async (options) => (await import('../host/host.ts')).Host.start(options),
  serveControl: async (host, options) => (await import('../daemon/server.ts')).serveControl(host, options),
  buildRoot: async (path, options) => (await import('../guest/build-root.ts')).buildRoot(path, options),
  prepareGuest: async (options) => (await import('../guest/initramfs.ts')).prepareGuest(options),
};
