// `npm start`.

import { launch } from './launcher.js';

launch('../src/cli/start.ts', process.argv.slice(2), true);
