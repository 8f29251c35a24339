/** `/container/:id` is a container with a volume of its own; `/container/:id/files/…` are the volume's files. */
import { routeContainer, StatefulContainer, type VolumeEnv } from "storeshim-worker";

interface Env extends VolumeEnv {
  VISITS: DurableObjectNamespace<Visits>;
}

/** The container. What it writes to /storage is there again after it has slept. */
export class Visits extends StatefulContainer {
  override sleepAfter = "2m";
}

export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    const routed = await routeContainer(request, env.VISITS);
    return routed ?? new Response("Visit /container/anything\n", { status: 404 });
  },
} satisfies ExportedHandler<Env>;
