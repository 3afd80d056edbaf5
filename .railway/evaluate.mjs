// Prints what railway.ts describes in each environment, as JSON: what the Railway CLI would compare with what runs.
import { createRailwayContext, project } from "railway/iac";
import program from "./out/railway.js";

const described = {};
for (const environmentName of ["production", "staging"]) {
  described[environmentName] = await program(createRailwayContext({ environmentName }), project);
}
console.log(JSON.stringify(described, null, 2));
